// Package version describes the build. It is the only place with the number of the release.
package version

import (
	"runtime"
	"runtime/debug"
)

// Version is the release.
const Version = "0.1.0"

// Docker is the release of Docker whose API this one has. Tools compare the engine's version with those of Docker.
const Docker = "28.2.2"

// Info describes the running program.
type Info struct {
	Version, Commit, Time, Go, OS, Arch string
}

// Get returns what the Go tool wrote into the binary. Commit and Time are "" where it wrote nothing.
func Get() Info {
	i := Info{Version: Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return i
	}
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			i.Commit = s.Value
		case "vcs.time":
			i.Time = s.Value
		}
	}
	return i
}
