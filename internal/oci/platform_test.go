package oci

import (
	"strings"
	"testing"
)

func TestPlatformMatches(t *testing.T) {
	for _, c := range []struct {
		want, image string // os/arch/variant
		match       bool
	}{
		{"linux/amd64", "linux/amd64", true},
		{"linux/amd64", "linux/amd64/v1", true},
		{"linux/amd64/v1", "linux/amd64", true},
		{"linux/amd64/v2", "linux/amd64/v2", true},
		{"linux/amd64/v2", "linux/amd64/v1", false},
		{"linux/amd64/v2", "linux/amd64", true},
		{"linux/amd64", "linux/amd64/v3", true}, // the request leaves the variant open
		{"linux/amd64", "linux/x86_64", true},
		{"linux/amd64", "linux/386", false},
		{"linux/amd64", "linux/arm64", false},
		{"linux/amd64", "windows/amd64", false},
		{"linux/arm64", "linux/arm64/v8", true},
		{"linux/arm64/v8", "linux/arm64", true},
		{"linux/arm64", "linux/aarch64", true},
		{"linux/arm64", "linux/arm/v8", false},
		{"linux/arm64", "linux/arm/v7", false},
		{"linux/arm/v6", "linux/arm/v6", true},
		{"linux/arm/v7", "linux/arm/v6", false},
		{"linux/arm/v6", "linux/arm/v7", false},
		{"linux/arm/v8", "linux/arm/v7", false},
		{"linux/arm/v7", "linux/arm/7", true},
		{"linux/arm/v6", "linux/arm", true}, // the image leaves the variant open
		{"linux/arm", "linux/arm/v7", true}, // ParsePlatform makes arm arm/v7
		{"linux/arm", "linux/arm/v6", false},
		{"linux/s390x", "linux/s390x", true},
	} {
		want, err := ParsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		if got := want.Matches(parts(c.image)); got != c.match {
			t.Errorf("%s matches an image for %s = %v, want %v", c.want, c.image, got, c.match)
		}
	}
}

// parts splits os/arch/variant without normalising, as an image's config has them.
func parts(s string) Platform {
	f := append(strings.Split(s, "/"), "", "")
	return Platform{OS: f[0], Architecture: f[1], Variant: f[2]}
}

func TestImageWithoutOperatingSystemIsForThisOne(t *testing.T) {
	host := HostPlatform()
	if !host.Matches(Platform{Architecture: host.Architecture}) {
		t.Errorf("%s does not match an image for %s without an operating system", host, host.Architecture)
	}
}

func TestConfigPlatform(t *testing.T) {
	c := &Config{OS: "linux", Architecture: "arm", Variant: "v6", OSVersion: "1"}
	if got := c.Platform().String(); got != "linux/arm/v6" {
		t.Errorf("Platform() = %s", got)
	}
}
