//go:build !(cgo && seccomp)

package filter

// Without libseccomp there is nothing to remember.
const replaceable = false

func library() string { return "" }

// Adopt takes what Files handed over, if anything. Init calls it before libcontainer's own.
func Adopt() {}
