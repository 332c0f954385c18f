// Package cli is the command line: docker's verbs and flags, spoken to any Docker Engine API.
//
// One file holds one command (or the few that are one idea); client talks HTTP, progress shows progress streams, format makes tables
// and templates, opts parses flag values, config keeps credentials, terminal handles the tty. No engine code is linked
// (a test checks it). Every command is a constructor on App that tests call with their own streams and host.
//
// Output is docker's, byte for byte, where it is not better on purpose: published IPv6 ports print as ":::5000->5000/tcp"
// (the older, scripted form), `images --tree` (and -t, and the old -tree with its warning) draws parent layers,
// `images inspect` shows layers, a forgotten `run` and Unicode dashes are named with the corrected line, --progress
// chooses how transfers are shown, a cancelled pull says what is kept, inspect templates may join and index lists that
// docker's refuse. TestTranscriptAgainstDocker compares them with the docker client that PLY_DOCKER_CLI names.
//
// Exit codes: 0, 1 (the command failed), 125 (wrong usage, or run failed in the engine), 126 and 127 (the container's
// command cannot be run, is not there), 128+n (ended by a signal), else the container's own.
package cli
