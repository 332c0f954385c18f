// Package erofs is the storage driver that keeps a layer as its tar: an EROFS image of names and attributes
// points into it, and the kernel mounts the pair.
//
// On disk, below the driver's root:
//
//	layers/sha256/<diffID>/layer.tar         the layer, byte-exact
//	                       layer.json        what it is; see record
//	                       side.data         content of sparse files, when there are any
//	                       index.erofs       names and attributes; its devices are the two above
//	                       index.json        lengths and digests of the index
//	                       index-<chainID>…  the same for one chain of parents, when the layer depends on them:
//	                       chain-<chainID>.data  with the files that its hard links reach below
//	layers/roots/<attributes>/               empty directories that lie on top of views
//	layers/inits/<number>/                   init layers of removed containers, for the next ones
//	layers/quarantine/<diffID>/              a damaged layer and the reason
//
// Invariants: index.json is written last, so an index exists or does not; a layer directory appears by one
// rename with everything in it durable; a damaged layer never stops Open, is never mounted or served, and
// committing it again heals it. One mount a layer is shared by all chains and containers that have it, so its page
// cache is.
//
// A layer depends on its parents when a hard link names a file of theirs, or when it has names in directories that
// no entry describes: these look as they do below. The root is the exception: nearly no layer describes it, so it is
// the upper directory, or one directory on top of a view, that carries its attributes (see package writable).
//
// What the kernel does not give: setting a POSIX ACL on a file of the image fails with EOPNOTSUPP until something else
// has copied the file up, because overlayfs asks the inode below whether it takes ACLs. ACLs in layers work.
package erofs
