// Package tarscan reads the uncompressed tar of a layer as a stream and passes checked, normalised entries to every driver.
// It is the only place that decides what the tar of a layer means.
//
// The rules for entries:
//
//   - Names are relative and clean: leading "/" and "./" are removed, and "." is the root. A "..", a NUL, a name of more
//     than 4096 bytes or a component of more than 255 bytes is refused. The same rules hold for the targets of hard links.
//     The target of a symbolic link is kept as it is, because no link is followed here. Drivers follow links of the same
//     layer in later names, inside the root.
//   - ".wh.x" is a Whiteout of x, and ".wh..wh..opq" makes its directory Opaque. Both apply only to the layers below,
//     wherever they stand in the tar. ".wh.", ".wh.." and ".wh..." are refused, and so is a directory component that
//     starts with ".wh.". Other names that start with ".wh..wh." belong to AUFS and are left out.
//   - The root must be a directory.
//   - Extended attributes come from PAX SCHILY.xattr records. Those of overlayfs (trusted.overlay.*, user.overlay.*) are
//     left out, as are namespaces that a layer cannot have, and user.* on anything but files and directories. More than
//     64 KiB on one entry is refused.
//   - A character device 0:0 is a whiteout of overlayfs, so it is left out.
//   - Owners are in 0…2^32-2, permission bits in 07777, and times are clamped to what ext4 can store.
//   - PAX and GNU long-name records are at most 1 MiB; Limits bounds entries and bytes.
//
// Errors have the class errs.Invalid and name the entry, except those of the reader and of visit, which are returned as
// they are.
package tarscan
