// Package upgrade shows that an upgrade of ply keeps everything: a data root that an earlier build wrote opens and works, a
// data root of a later build is refused before anything in it is changed, and containers keep running while the plyd of the
// previous build is replaced by the one of this tree.
//
// testdata/roots.tar.zst holds data roots that the previous build wrote (see previous in previous_test.go), one per
// storage driver. This command writes it again, with the binaries of that build and the program in testdata/box.c:
//
//	go test ./test/upgrade -run TestDataRootOfThePreviousBuild -write-roots
package upgrade
