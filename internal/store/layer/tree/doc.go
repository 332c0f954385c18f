// Package tree keeps one layer as a plain directory tree, with a recipe beside it from which the byte-exact tar
// can be rebuilt. The directory drivers stand on it.
//
// A layer directory holds:
//
//	fs/                 the tree in overlayfs' words: 0:0 devices are whiteouts, trusted.overlay.opaque hides
//	tar-split.json.gz   the recipe, in vbatts/tar-split's format: raw pieces of the tar, and files by name
//	hidden/<n>          content that is in the tar but no longer in the tree, because a later entry replaced it
//	meta.json           Meta
//
// A layer is unpacked alone, without looking at what it will stand on. Three things of it depend on that, and Meta
// lists them: directories that no entry describes (their attributes are those of the directory below), hard links to
// files of lower layers, and directories with whiteouts (overlayfs shows the names of whiteouts in a directory that
// it does not merge with another).
//
// Invariants: a tar cannot reach outside fs/. Every step is relative to a descriptor of fs/ and resolves no link
// (an entry below a symbolic link of the same layer goes where that link leads inside fs/); attributes are set by
// descriptor or without following.
package tree
