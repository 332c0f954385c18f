// Package image writes EROFS images with the names and attributes of a layer. The content of the files is not copied: it
// stays in the layer's tar and in side files, which are devices of the image.
//
// A Tree takes the entries in the order of the tar and stores them in arenas: about 100 bytes and the name per entry,
// whatever the shape of the tree. Its rules are those of a layer: the last entry of a name wins; a directory over a
// directory replaces the attributes and keeps the content, and any other clash removes the older name first; a parent that
// is not a directory becomes one; whiteouts and opaque marks apply to the layers below, wherever they stand in the tar.
// Hard links share an inode.
//
// Two things depend on the layers below, and Missing lists them: the attributes of directories that no entry describes, and
// files of lower layers to which this layer has hard links.
//
// The layout is uncompressed EROFS with blocks of 512 bytes, extended inodes, one chunk per file (so one 8-byte index
// whatever its size), inline tails and inline xattrs. The marks of overlayfs are written here: a whiteout is a character
// device 0:0, an opaque directory has trusted.overlay.opaque, and a directory with whiteouts has an empty
// trusted.overlay.origin, which hides them even when no other layer has that directory. The same entries always result in
// the same bytes.
package image
