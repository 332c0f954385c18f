// Command ply is the command line: docker's commands, sent to the engine's API. It links no engine code.
package main

import (
	"os"

	"ply/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
