// Package e2e tells the story of the command line with the real programs: ply and docker's own client against a real plyd,
// its shims, its drivers and a real registry, in a network and mount namespace of their own.
//
// testdata/script holds one txtar a story. Each gets a fresh plyd (see world.go); besides testscript's own commands it
// may use: ply, docker (28), docker20, registry, plyd, http, waitfor, pty. $IMAGES holds root file systems.
package e2e
