package container

import (
	"strings"
	"testing"

	"ply/internal/oci"
)

// Only an image of another platform that nobody asked for is worth a warning.
func TestForeignPlatform(t *testing.T) {
	host := oci.HostPlatform()
	foreign := oci.Platform{OS: "linux", Architecture: "s390x"}
	if host.Architecture == "s390x" {
		foreign.Architecture = "amd64"
	}
	want := "The requested image's platform (linux/" + foreign.Architecture + ") does not match the detected host platform (linux/" + host.Architecture
	if got := foreignPlatform(foreign, ""); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "and no specific platform was requested") {
		t.Errorf("%q, want %q…", got, want)
	}
	for _, c := range []struct {
		image oci.Platform
		asked string
	}{{foreign, foreign.String()}, {host, ""}, {oci.Platform{OS: "linux", Architecture: host.Architecture, Variant: "v9"}, ""}, {oci.Platform{}, ""}} {
		if got := foreignPlatform(c.image, c.asked); got != "" {
			t.Errorf("%v, asked for %q: %s", c.image, c.asked, got)
		}
	}
}
