// Package vfs keeps every stack of layers as a full copy of its tree, and gives each container a copy of its own. It needs
// only bind mounts and works on almost any file system, but it takes the most disk space and time.
//
//	<root>/layers/sha256/<chainID>/   a layer directory of package tree, except that fs/ is the whole stack
//	<root>/empty/                     the tree of the empty chain
//	<container dir>/fs/               the container's copy
//	<container dir>/copied.json       when that copy was complete
//
// A layer is unpacked into a temporary directory, without access to the layers below, and merged into a copy of its
// parents' tree at Commit. The changes of a container are found by comparing its tree with that of its chain. A file whose
// ctime is before the copy was complete has not changed; every other file is compared byte by byte.
//
// Hard links of an image stay whole in the container, where overlayfs would break them by copying up one name.
package vfs
