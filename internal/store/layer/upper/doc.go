// Package upper reads the writable directory of an overlay mount: its changes compared with the layers below, its content
// as the tar of a layer, and its size.
//
// An upper directory has the format of overlayfs: a character device 0:0 is a whiteout, and trusted.overlay.opaque hides
// the content that a directory has in the layers below. In a tar these become `.wh.name` and `.wh..wh..opq`. The directory
// may belong to a running container: names that disappear while they are read are left out, and a file that becomes shorter
// is filled up with zeros, so that the tar stays valid.
//
// Invariants: no symbolic link leads out of the directory, because every step is relative to a directory descriptor and
// follows no links; the same tree and the same lower layers always result in the same tar; memory does not grow with the
// size of files.
package upper
