// Package builder has the commands on builds: build, with the packing of its context, and the prune of the build cache.
package builder
