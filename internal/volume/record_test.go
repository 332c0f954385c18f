package volume

import (
	"strings"
	"testing"

	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

// mounts stands for the part of a container's record that this package declares.
type mounts struct {
	Resolved []Mount     `json:"resolved"`
	Asked    []MountSpec `json:"asked"`
}

// The form in which a container's mounts are stored. The record of a volume has its golden file in store/meta.
func TestGoldenMounts(t *testing.T) {
	want := mounts{
		Resolved: []Mount{{
			Type: "volume", Name: "data", Source: "/s/_data", Target: "/t", Driver: "local", Mode: "z", RW: true, Propagation: "rprivate", CopyUp: true,
			Options: []string{"size=1"}, Anonymous: true, CreateSource: true, NonRecursive: true, Subpath: "a/b",
			ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true,
			Image: oci.ImageID("sha256:" + strings.Repeat("a", 64)), Chain: oci.Chain{oci.DiffID("sha256:" + strings.Repeat("b", 64))},
		}},
		Asked: []MountSpec{{
			Type: "volume", Source: "data", Target: "/t", ReadOnly: true, Propagation: "rslave", NoCopy: true, NonRecursive: true, CreateSource: true,
			Labels: map[string]string{"a": "b"}, Driver: "local", DriverOpts: map[string]string{"type": "tmpfs"}, TmpfsSize: 4096, TmpfsMode: 0o700, Subpath: "a/b",
			ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true,
		}},
	}
	recordtest.Filled(t, want)
	data, err := record.Marshal(1, want)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "mounts.v1.json", data)
	recordtest.Decodes(t, "mounts.v1.json", 1, want)
	r, a := &want.Resolved[0], &want.Asked[0]
	r.Image, r.Chain, r.ReadOnlyNonRecursive, r.ReadOnlyForceRecursive, a.ReadOnlyNonRecursive, a.ReadOnlyForceRecursive = "", nil, false, false, false, false
	recordtest.Decodes(t, "mounts.unversioned.json", 1, want) // as builds before the first release wrote it
}
