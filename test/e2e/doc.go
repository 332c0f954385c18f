// Package e2e tests the command line with the real programs: ply and docker's own clients against a real plyd, its shims, its
// drivers and a real registry, in a network and mount namespace of their own.
//
// testdata/script holds one txtar file per story. Each story has a plyd of its own (see world_test.go). Besides testscript's own
// commands it may use ply, docker (28), docker20, registry, plyregistry, endregistry, plyd, http, waitfor and pty. $IMAGES holds root file systems.
//
// testdata/clients holds the stories of the programs of other projects: buildx, compose, cosign, regctl and crane, which test/setup/clients
// builds from the module proxy (see clients_test.go), Debian's podman and buildah, and programs with docker's
// Go libraries and testcontainers (test/goclient and test/testcontainers, modules of their own).
package e2e
