// Package image makes EROFS images that hold the names and attributes of a layer, while the content of its files
// stays where it is: in the layer's tar and in side files, which become devices of the image.
//
// A Tree takes entries in the order of the tar and keeps them in arenas: about 100 bytes and the name each, whatever the
// shape. Rules of a layer tree: the last entry of a name wins; a directory over a directory replaces the attributes
// and keeps what it holds, any other clash removes first; a parent that is no directory becomes one; whiteouts
// and opaque marks speak of the layers below, wherever they stand in the tar. Links share an inode.
//
// Two things only the layers below can tell, and Missing lists them: what directories that no entry describes look
// like, and files that hard links of this layer name but another layer holds.
//
// The layout is uncompressed EROFS with blocks of 512 bytes, extended inodes, one chunk a file (so one 8-byte index
// whatever its size) and inline tails; xattrs are inline. Overlayfs' marks are made here: a whiteout is a
// character device 0:0, an opaque directory has trusted.overlay.opaque, and a directory with whiteouts has an empty
// trusted.overlay.origin, so that they do not show even when no other layer has that directory. The same entries give
// the same bytes.
package image
