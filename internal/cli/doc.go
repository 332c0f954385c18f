// Package cli is the command line of ply: docker's commands and flags, for any Docker Engine API. This package has Main and Run,
// the root command, the table of all commands (commands.go), help, completion and manual pages.
//
// Every command is a file with its name below command/, in the package of its noun. It is a function that takes a command.Invocation,
// which holds the streams, the configuration and the connection to the engine; tests pass one of their own. What commands share
// has a package of its own: client speaks HTTP, config reads and writes config.json with the credentials, daemon starts plyd, opts parses
// the values of flags, format prints tables and templates, table makes the rows that several commands print, progress shows progress
// streams, attach connects the terminal to a container, tarstream copies local files, terminal handles the tty. No code of the engine is
// linked; a test checks that.
//
// The output is docker's, byte for byte, with these exceptions, which are improvements:
//
//   - Published IPv6 ports print as ":::5000->5000/tcp", the older form, on which scripts rely.
//   - `images --tree` (also -t, and the old -tree with its warning) draws parent layers, and `images inspect` shows layers.
//   - For a command line without its `run`, and for Unicode dashes, the error shows the corrected line.
//   - --progress selects how transfers are shown, and a cancelled pull says what is kept.
//   - Templates of inspect may join and index lists that docker's refuse.
//
// TestTranscriptAgainstDocker compares the output with the docker client that PLY_DOCKER_CLI names.
//
// Exit codes: 0; 1 when the command failed; 125 for wrong usage, or when run failed in the engine; 126 and 127 when the command of the
// container cannot be run or does not exist; 128+n after signal n; else the exit code of the container.
package cli
