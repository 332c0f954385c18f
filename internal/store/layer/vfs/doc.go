// Package vfs keeps every stack of layers as a full copy of its tree, and gives every container one of its own. It
// needs nothing of the file system and no overlay, only bind mounts; it costs the most disk and time.
//
//	<root>/layers/sha256/<chainID>/   a layer directory of package tree, but fs/ is the whole stack
//	<root>/empty/                     the tree of the empty chain
//	<container dir>/fs/               the container's copy; copied.json tells when it was complete
//
// A layer is unpacked alone into a temporary directory, like everywhere, and laid over a copy of its parent's tree at
// Commit. What a container changed is found by comparing its tree with that of its chain: a file whose ctime lies
// before the copy was complete is surely the same, every other one is compared to the last byte.
//
// Where overlayfs breaks hard links of an image by copying one name up, they stay whole here.
package vfs
