//go:build !(cgo && seccomp)

package seccomp

// Without libseccomp there is no program to cache.
const replaceable = false

func library() string { return "" }

// Adopt does nothing in a build without libseccomp.
func Adopt() {}
