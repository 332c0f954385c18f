// Package upper reads the writable directory of an overlay mount: what it changes against the stack
// below, as a layer tar, and how much it holds.
//
// An upper directory speaks overlayfs: a character device 0:0 is a whiteout, trusted.overlay.opaque hides
// what a directory had below. Here that becomes `.wh.name` and `.wh..wh..opq`. The directory may belong to
// a running container: names that vanish while they are read are left out, and a file that shrinks is
// filled up with zeros so that the tar stays well formed.
//
// Invariants: nothing is followed out of the directory (every step is relative to a directory descriptor,
// without following links); the tar is a function of tree and lower alone, so the same tree gives the same
// bytes; memory does not grow with file sizes.
package upper
