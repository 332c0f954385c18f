package server

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/registry/auth"
)

// suite is one by which the specification of registries tests them, with everything switched on.
type suite struct {
	program string // in the cache of this user, where test/setup/conformance puts it
	env     []string
	skipped []string // tests of registries that answer otherwise or cannot be pushed to, by how their names end
	basic   bool     // with a login, callers are asked for it by Basic: the tokens of the suite are for one repository
	least   int      // how many tests there are at least
}

var suites = map[string]suite{
	"v1.1.1": {
		program: "conformance-v1.1.1", least: 80, basic: true,
		skipped: []string{"Get tag name from environment", "Populate registry with test tags (no push)", "Cross-mounting of nonexistent blob should yield session id", "automatic content discovery disabled should return a 202"},
		env:     []string{"OCI_TEST_PULL=1", "OCI_TEST_PUSH=1", "OCI_TEST_CONTENT_DISCOVERY=1", "OCI_TEST_CONTENT_MANAGEMENT=1", "OCI_AUTOMATIC_CROSSMOUNT=1", "OCI_HIDE_SKIPPED_WORKFLOWS=0"},
	},
	"main": {
		program: "conformance-main", least: 800,
		env: []string{"OCI_VERSION=1.1", "OCI_DATA_SPARSE=true", "OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_TAG_PARAM=true"},
	},
	"main with what comes next": {program: "conformance-main", least: 800, env: []string{"OCI_VERSION=dev", "OCI_DATA_SPARSE=true"}},
}

// The suites of the specification find nothing, in a root and on replicas, in a registry that is open and in one where clients log in.
func TestConformance(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range suites {
		program := filepath.Join(cache, "ply-clients", s.program)
		if _, err := os.Stat(program); err != nil {
			if os.Getenv("PLY_NIGHTLY") != "" {
				t.Fatalf("%v: test/setup/conformance makes it", err)
			}
			t.Skip("test/setup/conformance makes the suites")
		}
		t.Run(name, func(t *testing.T) {
			onBothBackEnds(t, func(t *testing.T, o Options) {
				o.Missing = true // the sparse images of the suite lack blobs
				for _, login := range []bool{false, true} {
					t.Run(fmt.Sprint("login ", login), func(t *testing.T) { s.run(t, program, o, login) })
				}
			})
		})
	}
}

func (s suite) run(t *testing.T, program string, o Options, login bool) {
	var url string
	env := s.env
	if login {
		o.Basic = s.basic
		_, c := closed(t, map[string][]auth.Grant{"root": {{Subject: "root", Pattern: "**", Role: auth.Admin}}}, o)
		url, env = c.url, append(slices.Clone(env), "OCI_USERNAME=root", "OCI_PASSWORD=root")
	} else {
		o.Root = t.TempDir()
		_, url, _ = start(t, o)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env,
		"OCI_ROOT_URL="+url, "OCI_NAMESPACE=conformance/one", "OCI_CROSSMOUNT_NAMESPACE=conformance/two", "OCI_REPORT_DIR="+dir, // of v1.1.1
		"OCI_REGISTRY="+strings.TrimPrefix(url, "http://"), "OCI_TLS=disabled", "OCI_REPO1=conformance/one", "OCI_REPO2=conformance/two", "OCI_RESULTS_DIR="+dir)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out[max(0, len(out)-5000):])
	}
	b, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var report struct {
		Suites []struct {
			Cases []struct {
				Name    string    `xml:"name,attr"`
				Status  string    `xml:"status,attr"`
				Skipped *struct{} `xml:"skipped"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &report); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, list := range report.Suites {
		for _, c := range list.Cases {
			n++
			switch {
			case c.Failure != nil || c.Error != nil:
				t.Errorf("failed: %s", c.Name)
			case c.Skipped != nil && !slices.ContainsFunc(s.skipped, func(end string) bool { return strings.HasSuffix(c.Name, end) }):
				t.Errorf("passed over: %s", c.Name)
			}
		}
	}
	if n < s.least {
		t.Errorf("%d tests, want %d at least\n%s", n, s.least, out)
	}
	t.Logf("%d tests", n)
}
