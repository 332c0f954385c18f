// Package dockerroot reads the data root of a docker engine that does not run: its images with their layers, containers, volumes and networks.
//
// Images are those of the storage driver overlay2 or those of containerd's image store; the other objects are the same with both. Open refuses a root
// that a dockerd or containerd has open, and locks it against them until Close. Nothing is ever written: all files are opened below a read-only
// copy of the mount, so that not even the times of access change.
//
// Invariants: nothing in the root is trusted. No symbolic link is followed below the root. Files that are read into memory, lists and
// values are bounded. An object that cannot be read is a Problem with its name, and the others are read all the same. Configs and
// manifests are compared with their digests; of layers the comments of Layer and Archive say what is.
package dockerroot
