// Command euid prints its effective user.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Println(os.Geteuid()) }
