// Package erofs is the storage driver that stores each layer as its tar. An EROFS image with names and attributes points
// into the tar, and the kernel mounts the two together.
//
// On disk, below the driver's root:
//
//	layers/sha256/<diffID>/layer.tar         the layer, byte for byte
//	                       layer.json        what the layer is; see layerRecord
//	                       side.data         content of sparse files, if there are any
//	                       index.erofs       names and attributes; its devices are the two files above
//	                       index.json        sizes and digests of the index
//	                       index-<chainID>…  an index for one chain of parents, when the layer depends on them:
//	                       chain-<chainID>.data  with the files of the parents to which it has hard links
//	layers/roots/<attributes>/               empty directories that are the top layer of views
//	layers/inits/<number>/                   init layers of removed containers, for the next ones
//	layers/mounts/<name>/                    mount points of layers, where the kernel cannot stack detached mounts
//	layers/quarantine/<diffID>/              a damaged layer and the reason
//
// Invariants: index.json is written last, so an index exists completely or not at all. A layer directory appears by one
// rename, when everything in it is durable. A damaged layer does not stop Open, is never mounted or read, and is repaired
// by committing it again. Each layer has one mount, which all chains and containers share, and with it the page cache.
//
// A layer depends on its parents when one of its hard links names a file of theirs, or when it has names in directories
// that no entry describes: these look as they do below. The root directory is the exception, because most layers do not
// describe it: its attributes come from the upper directory, or from an empty directory on top of a view (see package
// writable).
//
// A limit of the kernel: setting a POSIX ACL on a file of the image fails with EOPNOTSUPP until another change has copied
// the file up, because overlayfs asks the inode below whether it supports ACLs. ACLs in layers work.
package erofs
