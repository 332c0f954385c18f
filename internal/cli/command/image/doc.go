// Package image has the commands on images, except build, which is in package builder.
package image
