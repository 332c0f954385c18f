// Package image has the commands on images: build apart, which is in package builder, everything that lists, changes, moves or removes
// them.
package image
