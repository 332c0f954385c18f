// Package mount makes, attaches and removes Linux mounts with the new mount API: fsopen, fsconfig, fsmount, move_mount.
// Compared with mount(2), options may be longer than a page, errors carry the kernel's messages, and a mount can be used by its
// descriptor without being attached to a directory.
//
// A Tree is a detached mount. It exists until Close; what was attached from it exists independently. Overlays always have
// redirect_dir=nofollow, metacopy=off and index=off: a layer must not be able to point elsewhere, and an upper directory must
// contain whole files.
//
// Required kernels: 5.12 for all; 6.12 for EROFS on a file, 6.15 for detached trees as layers of an overlay. On older kernels the caller
// attaches the trees and names them with At. Before 6.7 an overlay is mounted with mount(2), whose options fit one page: it has at least 400 layers, with
// short names in mountinfo, see ShortName.
package mount
