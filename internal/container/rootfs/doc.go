// Package rootfs works on the root file system of a container: it mounts it for several users at once (Root), shows
// it with the container's volumes (Root.View), and reads and writes files in it (Lstat, CopyOut, CopyIn, Export,
// LookupUser).
//
// The functions take an open descriptor of the root and no container. The content of a root is hostile: an image or
// a running container may put anything at any path and replace it at any time. Every path is therefore resolved by
// the kernel below the root (package safepath), and the last component is never followed unless a function says so.
package rootfs
