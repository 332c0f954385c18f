package sbom

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/build/tree"
)

func scanOf(t *testing.T, files map[string]string) *Result {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tr, err := tree.New(root, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Scan(t.Context(), tr)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestScan(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string // package URLs
	}{
		{"nothing", nil, nil},
		{"dpkg", map[string]string{
			"etc/os-release":                  "ID=debian\nVERSION_ID=\"13\"\n",
			"var/lib/dpkg/status":             "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc (2.41)\nVersion: 2.41-1+b1\nDescription: x\n more\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
			"var/lib/dpkg/status.d/tzdata":    "Package: tzdata\nVersion: 2026a\nArchitecture: all\n",
			"var/lib/dpkg/status.d/x.md5sums": "Package: no\nVersion: 1\n",
		}, []string{"pkg:deb/debian/libc6@2.41-1%2Bb1?arch=amd64&distro=debian-13&upstream=glibc", "pkg:deb/debian/tzdata@2026a?arch=all&distro=debian-13"}},
		{"apk", map[string]string{"lib/apk/db/installed": "C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:x\n\nP:busybox-bin\nV:1.37\nA:x86_64\no:busybox\n"},
			[]string{"pkg:apk/alpine/busybox-bin@1.37?arch=x86_64&upstream=busybox", "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64"}},
		{"npm", map[string]string{
			"app/package-lock.json":                 `{"packages":{"":{"version":"1"},"node_modules/a":{"version":"1.0.0","license":"MIT"},"node_modules/a/node_modules/@s/b":{"version":"2.0.0"},"node_modules/linked":{"link":true}}}`,
			"old/package-lock.json":                 `{"dependencies":{"c":{"version":"3.0.0","dependencies":{"d":{"version":"4.0.0"}}}}}`,
			"usr/lib/node_modules/npm/package.json": `{"name":"npm","version":"11.0.0","license":{"type":"x"}}`,
			"home/package.json":                     `{"name":"mine","version":"1"}`,
		}, []string{"pkg:npm/a@1.0.0", "pkg:npm/c@3.0.0", "pkg:npm/d@4.0.0", "pkg:npm/npm@11.0.0", "pkg:npm/%40s/b@2.0.0"}},
		{"python", map[string]string{"usr/lib/python3/dist-packages/Foo_Bar-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\nLicense: BSD\n\nbody\n"}, []string{"pkg:pypi/foo-bar@1.0"}},
		{"cargo", map[string]string{"src/Cargo.lock": "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\ndependencies = [\n \"x\",\n]\n\n[metadata]\nname = \"no\"\n"}, []string{"pkg:cargo/serde@1.0.1"}},
		{"ruby", map[string]string{"app/Gemfile.lock": "GEM\n  specs:\n    rake (13.0.6)\n      dep (>= 1)\n", "gems/specifications/net-http-0.4.1.gemspec": "x"}, []string{"pkg:gem/net-http@0.4.1", "pkg:gem/rake@13.0.6"}},
		{"composer", map[string]string{"app/composer.lock": `{"packages":[{"name":"a/b","version":"v1","license":["MIT"]}]}`, "vendor/composer/installed.json": `[{"name":"c/d","version":"2"}]`}, []string{"pkg:composer/a/b@v1", "pkg:composer/c/d@2"}},
		{"hostile", map[string]string{
			"lib/apk/db/installed": "P:a\x00b\nV:1\n\nP:" + strings.Repeat("x", 2000) + "\nV:1\n\nP:\n\n\n:\n",
			"a/package-lock.json":  `{"packages":{"node_modules/a":` + strings.Repeat("[", 100_000),
			"b/package-lock.json":  `{"packages":{"node_modules/../../etc":{"version":"1"}}}`,
			"c/composer.lock":      "\x00\x01", "d/Cargo.lock": "[[package]]\nname = \n", "e/Gemfile.lock": "    (1)\n    x (\n",
			"bin/elf": "\x7fELF" + strings.Repeat("\xff", 100_000),
		}, []string{"pkg:npm/..%2F..%2Fetc@1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range scanOf(t, tt.files).Packages {
				got = append(got, p.url())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q\nwant %q", got, tt.want)
			}
		})
	}
}

// The program that runs this test was built by Go.
func TestScanGoProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	r := scanOf(t, map[string]string{"bin/x": string(data)})
	if !slices.ContainsFunc(r.Packages, func(p Package) bool { return p.Kind == "golang" && p.Name == "stdlib" && p.Version != "" }) {
		t.Errorf("got %+v", r.Packages)
	}
}

func TestDocument(t *testing.T) {
	r := scanOf(t, map[string]string{"lib/apk/db/installed": "P:musl\nV:1\nL:MIT\n", "var/lib/rpm/rpmdb.sqlite": "x"})
	at := time.Unix(1700000000, 0)
	a, err := r.Document("app:1", at, "ply-1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Document("app:1", at, "ply-1")
	if err != nil || string(a) != string(b) {
		t.Errorf("a second document differs: %v", err)
	}
	var d struct {
		SPDXVersion       string
		DocumentNamespace string
		Comment           string
		CreationInfo      struct{ Created string }
		Packages          []struct{ Name, SPDXID, LicenseComments string }
		Relationships     []struct{ SPDXElementID, RelatedSPDXElement, RelationshipType string }
	}
	if err := json.Unmarshal(a, &d); err != nil {
		t.Fatal(err)
	}
	if d.SPDXVersion != "SPDX-2.3" || d.CreationInfo.Created != "2023-11-14T22:13:20Z" || !strings.Contains(d.Comment, "rpmdb.sqlite") || len(d.Packages) != 2 || !strings.Contains(d.Packages[1].LicenseComments, "MIT") || len(d.Relationships) != 2 || !strings.HasPrefix(d.DocumentNamespace, "https://") {
		t.Errorf("got %s", a)
	}
}
