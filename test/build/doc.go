// Package build tests the builder with whole Dockerfiles, on the erofs and overlay2 drivers, through the command line.
//
// Every directory in testdata is a case: a Dockerfile and its context. Some of its files are not part of the context:
//
//	want      the files that the build adds to the base image, the config and the history; or "error CODE" and texts that the output must have
//	args      further words of the build's command line, one per line
//	setup     a shell script that prepares the context in its directory
//	before    builds that come first: a tag and the words of the command line, one build per line
//	classic, buildkit, buildah
//	          what docker's builders and buildah make of the same case, recorded with -update-docker and -update-buildah; every difference has its
//	          reason in differences.txt
//
// The base image "base" has the applets of busybox and a few users. All files of a context have the modification time 2020-01-02 03:04:05 UTC and
// the modes 644 and 755, unless setup changes them. go test -update writes the files "want" of cases that do not expect an error.
//
// Of docker and buildah, TestAgainstOthers needs only the records; PLY_NIGHTLY=1 builds the cases with them once more and compares the records.
//
// TestRandom builds random Dockerfiles and compares the trees with those of a plain interpreter. TestItself builds ply.
package build
