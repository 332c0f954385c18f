// Package run has the commands that start programs in containers and connect to them: run, create, start, attach and exec. It also has
// update, whose flags are flags of run.
package run
