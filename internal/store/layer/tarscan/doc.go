// Package tarscan reads the uncompressed tar of a layer once, as a stream, and gives every driver the same
// normalised, checked entries: what a layer tar means is decided here and nowhere else.
//
// What an entry is allowed to be:
//
//   - Names are relative and clean: leading "/" and "./" are stripped, "." is the root. "..", a NUL, more than
//     4096 bytes or a component of more than 255 are refused. Hard link targets follow the same rules; the target of a
//     symbolic link is kept as it is, whatever it says, because nothing here follows one (drivers follow
//     links of the same layer on the way to a later name, inside the root).
//   - ".wh.x" is a Whiteout of x, ".wh..wh..opq" makes its directory Opaque; both speak of lower layers only, wherever
//     they stand. ".wh.", ".wh.." and ".wh..." are refused, and so is a directory component that starts with ".wh.".
//     Other ".wh..wh." names are AUFS' own and left out.
//   - The root may only be a directory.
//   - Extended attributes come from PAX SCHILY.xattr records. Those of overlayfs (trusted.overlay.*, user.overlay.*)
//     are dropped, as are namespaces that no layer can carry, and user.* on what is neither file nor directory.
//     More than 64 KiB on one entry is refused.
//   - A character device 0:0 is what overlayfs takes for a whiteout: it is left out.
//   - Owners lie in 0…2^32-2, permission bits in 07777, times are clamped to what ext4 stores.
//   - PAX and GNU long-name records are bounded to 1 MiB, entries and bytes by Limits.
//
// Errors are errs.Invalid and name the entry, except those of the underlying reader and of visit, which are
// passed on.
package tarscan
