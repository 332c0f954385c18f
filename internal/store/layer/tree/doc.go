// Package tree stores one layer as a plain directory tree, together with a recipe from which its tar can be rebuilt byte
// for byte. The drivers overlay2 and vfs use it.
//
// A layer directory contains:
//
//	fs/                 the tree in overlayfs' format: 0:0 devices are whiteouts, trusted.overlay.opaque hides lower content
//	tar-split.json.gz   the recipe, in the format of vbatts/tar-split: raw pieces of the tar, and files by name
//	hidden/<n>          content of the tar that is not in the tree, because a later entry replaced it
//	meta.json           Meta
//
// A layer is unpacked without access to the layers below it. Three things in it depend on those, and Meta lists them:
// directories that no entry describes (they have the attributes of the directory below), hard links to files of lower
// layers, and directories with whiteouts (overlayfs shows the whiteouts of a directory that it does not merge with another
// one).
//
// Invariants: a tar cannot reach outside fs/. Every step is relative to a descriptor of fs/ and follows no symbolic link of
// the file system; an entry below a symbolic link of the same layer goes where that link leads inside fs/. Attributes are
// set by descriptor or without following links.
package tree
