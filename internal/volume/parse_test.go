package volume

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
)

func TestParseBind(t *testing.T) {
	for _, c := range []struct {
		raw  string
		want Bind
	}{
		{"/a:/b", Bind{Source: "/a", Target: "/b"}},
		{"/a/../c:/b/", Bind{Source: "/c", Target: "/b"}},
		{"/a:/b:ro", Bind{Source: "/a", Target: "/b", Mode: "ro", bindMode: bindMode{ReadOnly: true}}},
		{"/a:/b:rw,z,cached,rslave", Bind{Source: "/a", Target: "/b", Mode: "rw,z,cached,rslave", bindMode: bindMode{Propagation: "rslave"}}},
		{"name:/b", Bind{Source: "name", Target: "/b", Named: true}},
		{"name:/b:nocopy,Z", Bind{Source: "name", Target: "/b", Mode: "nocopy,Z", Named: true, bindMode: bindMode{NoCopy: true}}},
	} {
		if got, err := ParseBind(c.raw); err != nil || got != c.want {
			t.Errorf("%s: %+v %v, want %+v", c.raw, got, err, c.want)
		}
	}
	for raw, text := range map[string]string{
		"":                 "invalid volume specification: ''",
		"/a":               "invalid volume specification: '/a'",
		":/b":              "invalid volume specification: ':/b'",
		"/a:":              "invalid volume specification: '/a:'",
		"/a:/b:ro:x":       "invalid volume specification: '/a:/b:ro:x'",
		"/a:b":             "mount path must be absolute",
		"/a:ro":            "invalid volume specification: '/a:ro'",
		"/a:/":             "invalid specification: destination can't be '/'",
		"/a:/..":           "destination can't be '/'",
		"/a:/b:ro,rw":      "invalid mode: ro,rw",
		"/a:/b:nocopy":     "invalid mode: nocopy",
		"name:/b:rshared":  "invalid mode: rshared",
		"/a:/b:z,Z":        "invalid mode: z,Z",
		"/a:/b:shared,ro,": "invalid mode: shared,ro,",
		"x:/b":             "volume name is too short, names should be at least two alphanumeric characters",
		"a/b:/c":           `includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`,
		"../x:/c":          "includes invalid characters",
		"/a:/b\x00":        "invalid volume specification",
	} {
		_, err := ParseBind(raw)
		if err == nil || !strings.Contains(err.Error(), text) || !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, want %q", raw, err, text)
		}
	}
}

func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "name:/b", "/a:/b:z,rshared", "::", "a:/b:nocopy"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		b, err := ParseBind(raw)
		if err != nil {
			return
		}
		if !path.IsAbs(b.Target) || b.Target == "/" || path.Clean(b.Target) != b.Target || strings.IndexByte(b.Target+b.Source, 0) >= 0 {
			t.Errorf("%q: target %q", raw, b.Target)
		}
		if b.Named == path.IsAbs(b.Source) || b.Named && strings.Contains(b.Source, "/") {
			t.Errorf("%q: source %q", raw, b.Source)
		}
	})
}

func TestParseInherit(t *testing.T) {
	for raw, want := range map[string]struct {
		name string
		ro   bool
	}{"u1": {"u1", false}, "u1:ro": {"u1", true}, "u1:rw": {"u1", false}, "u1:z": {"u1", false}} {
		if n, ro, err := ParseInherit(raw); err != nil || n != want.name || ro != want.ro {
			t.Errorf("%s: %s %v %v", raw, n, ro, err)
		}
	}
	for _, raw := range []string{"", "u1:x", "u1:rshared", "u1:nocopy"} {
		if _, _, err := ParseInherit(raw); err == nil {
			t.Errorf("%q was accepted", raw)
		}
	}
}

func TestParseTmpfs(t *testing.T) {
	m, err := parseTmpfs("/t/", "size=64m,exec,mode=1777,ro")
	if err != nil || m.Target != "/t" || m.RW || !slices.Equal(m.Options, []string{"nosuid", "nodev", "size=64m", "mode=1777", "ro"}) {
		t.Errorf("%+v %v", m, err)
	}
	for _, o := range []string{"size", "size=", "bogus", "bind", "exec=1", "remount"} {
		if _, err := parseTmpfs("/t", o); err == nil {
			t.Errorf("%q was accepted", o)
		}
	}
}
