// Command ply is the command line of ply: docker's words, spoken to the engine's API. It holds no engine code.
package main

import (
	"os"

	"ply/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
