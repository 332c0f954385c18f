// Package mount makes, attaches and undoes Linux mounts through the new mount API (fsopen, fsconfig,
// fsmount, move_mount): no option page and its length limit, errors with the kernel's own words, and mounts
// that live as a descriptor before, or without ever, having a place in the tree.
//
// A Tree is a detached mount. It lives until Close; what was attached from it lives on its own. Overlays
// always have redirect_dir=nofollow, metacopy=off and index=off: a layer must not be able to point elsewhere,
// and an upper directory must hold whole files.
//
// Kernel needs: EROFS on a file 6.12; detached trees as overlay layers 6.15 (before, attach them first and
// name them with At).
package mount
