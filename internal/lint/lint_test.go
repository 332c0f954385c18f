package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,Imports,Deps"}, patterns...)...)
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// floors orders the house from the ground up. A package may import packages of its own room and of lower floors;
// those of its own floor only where beside allows it.
var floors = [][]string{
	{"errs", "durable", "safepath", "procid", "version", "host", "record", "manual", "boltfile"},
	{"oci", "compress", "events", "memory", "mount", "wire", "filter", "fence", "spill"},
	{"store", "registry", "dockerroot"},
	{"image", "container", "transfer", "network", "volume", "config", "system", "build", "importer"},
	{"engine", "api", "cli"},
}

// beside are the drawn pairs on one floor: value types and services that a neighbour is built from. Everything else meets through
// interfaces that the consumer declares.
var beside = map[string][]string{
	"safepath":  {"errs"},
	"durable":   {"safepath"},
	"record":    {"errs", "durable", "version"},
	"manual":    {"version"},
	"wire":      {"oci"},
	"container": {"image", "network", "volume"},
	"config":    {"container"},
	"transfer":  {"image"},
	"build":     {"container", "image", "transfer", "volume"},
	"importer":  {"container", "image", "network", "transfer", "volume"},
	"system":    {"config", "container", "image"},
}

func room(importPath string) string {
	r, _, _ := strings.Cut(strings.TrimPrefix(importPath, "ply/internal/"), "/")
	return r
}

func floorOf(room string) int {
	return slices.IndexFunc(floors, func(f []string) bool { return slices.Contains(f, room) })
}

func TestImportsPointDown(t *testing.T) {
	used := map[string][]string{} // the drawn pairs that an import needs
	for _, p := range list(t, "./internal/...") {
		from := room(p.ImportPath)
		if from == "lint" {
			continue
		}
		if floorOf(from) < 0 {
			t.Errorf("%s stands on no floor: put %q into the table or move it", p.ImportPath, from)
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "ply/cmd") {
				t.Errorf("%s imports a command", p.ImportPath)
			}
			to := room(imp)
			if !strings.HasPrefix(imp, "ply/internal/") || to == from {
				continue
			}
			if floorOf(to) == floorOf(from) && slices.Contains(beside[from], to) {
				used[from] = append(used[from], to)
				continue
			}
			if floorOf(to) >= floorOf(from) {
				t.Errorf("%s imports %s, which does not stand below it", p.ImportPath, imp)
			}
		}
	}
	for from, list := range beside {
		for _, to := range list {
			if !slices.Contains(used[from], to) {
				t.Errorf("the table draws %s beside %s, but no import needs it: remove the pair", from, to)
			}
		}
	}
}

// What a binary may not reach, and why.
func TestBinariesStaySmall(t *testing.T) {
	bans := map[string]map[string]string{
		"ply/cmd/ply": {
			"ply/internal/store": "the command line speaks the API only", "ply/internal/engine": "the command line speaks the API only",
			"ply/internal/container": "the command line speaks the API only", "go.etcd.io/bbolt": "the command line has no database",
			"github.com/opencontainers/runc": "the command line runs no container", "github.com/moby/buildkit": "plyd reads Dockerfiles",
		},
		"ply/cmd/plyd": {"github.com/opencontainers/runc/libcontainer": "containers live under the shim, never under plyd"},
		"ply/cmd/ply-shim": {
			"ply/internal/store": "the shim is multiplied by every container", "go.etcd.io/bbolt": "the shim is multiplied by every container",
			"net/http": "the shim is multiplied by every container", "github.com/moby/buildkit": "the shim is multiplied by every container",
		},
		"ply/cmd/ply-registry": {
			"ply/internal/store": "the registry has nothing of the engine", "ply/internal/engine": "the registry has nothing of the engine",
			"github.com/opencontainers/runc": "the registry runs no container", "github.com/moby/buildkit": "the registry builds nothing",
		},
	}
	for _, p := range list(t, "./cmd/...") {
		for ban, why := range bans[p.ImportPath] {
			for _, dep := range p.Deps {
				if dep == ban || strings.HasPrefix(dep, ban+"/") {
					t.Errorf("%s reaches %s: %s", p.ImportPath, dep, why)
					break
				}
			}
		}
	}
}

// The registry shares the ground of the house with the engine, and nothing else; the engine knows it as it knows any registry. The measurements fill a
// registry's database before they start it.
func TestRegistryStandsAlone(t *testing.T) {
	shared := []string{"errs", "durable", "safepath", "record", "version", "oci", "compress", "fence", "registry"}
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, "ply/internal/") {
				continue
			}
			from, to := room(p.ImportPath), room(imp)
			if from == "registry" && !slices.Contains(shared, to) {
				t.Errorf("%s imports %s, which belongs to the engine", p.ImportPath, imp)
			}
			if to == "registry" && from != "registry" && p.ImportPath != "ply/cmd/ply-registry" && p.ImportPath != "ply/bench" {
				t.Errorf("%s imports %s: only the registry's command may", p.ImportPath, imp)
			}
		}
	}
}

// Third-party libraries stop at one adapter package.
func TestLibrariesStopAtTheirAdapter(t *testing.T) {
	homes := map[string][]string{
		"go.etcd.io/bbolt":                            {"ply/internal/store/meta", "ply/internal/registry/metadata/bolt", "ply/internal/dockerroot"},
		"github.com/moby/moby/api":                    {"ply/internal/api/", "ply/internal/cli"},
		"github.com/opencontainers/runc/libcontainer": {"ply/internal/container/supervise", "ply/internal/container/seccomp", "ply/cmd/ply-shim"},
		"github.com/vishvananda/netlink":              {"ply/internal/network/bridge", "ply/internal/network/vlan", "ply/internal/network/namespace"},
		"github.com/godbus/dbus/v5":                   {"ply/internal/network/firewalld"},
		"github.com/klauspost/compress":               {"ply/internal/compress"},
		"github.com/klauspost/pgzip":                  {"ply/internal/compress"},
		"github.com/ulikunitz/xz":                     {"ply/internal/compress"},
		"github.com/vbatts/tar-split":                 {"ply/internal/store/layer", "ply/internal/dockerroot"},
		"github.com/distribution/reference":           {"ply/internal/build/dockerfile"},
		"github.com/jackc/pgx/v5":                     {"ply/internal/registry/metadata/postgres"},
		"github.com/minio/minio-go/v7":                {"ply/internal/registry/blobs/s3"},
		"github.com/prometheus/client_golang":         {"ply/internal/registry/observe"},
		"go.yaml.in/yaml/v3":                          {"ply/internal/registry/config", "ply/internal/cli/bakefile"},
		"github.com/compose-spec/compose-go/v2":       {"ply/internal/cli/bakefile"},
		"github.com/hashicorp/go-cty-funcs":           {"ply/internal/cli/bakefile"},
		"go.opentelemetry.io/otel":                    {"ply/internal/registry/trace"},
		"github.com/coreos/go-oidc/v3":                {"ply/internal/registry/oidc"},
		"golang.org/x/oauth2":                         {"ply/internal/registry/oidc"},
		"github.com/hashicorp/hcl/v2":                 {"ply/internal/cli/bakefile"},
		"github.com/zclconf/go-cty":                   {"ply/internal/cli/bakefile"},
		"golang.org/x/crypto/ssh":                     {"ply/internal/cli/direct"},
		"github.com/spf13/cobra":                      {"ply/internal/cli", "ply/cmd/ply"},
		"github.com/RackSec/srslog":                   {"ply/internal/container/logforward"},
		"github.com/Graylog2/go-gelf":                 {"ply/internal/container/logforward"},
		"github.com/fluent/fluent-logger-golang":      {"ply/internal/container/logforward"},
		"google.golang.org/grpc":                      {"ply/internal/api/buildkit", "ply/internal/cli"},
	}
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			for lib, allowed := range homes {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.ContainsFunc(allowed, func(h string) bool { return strings.HasPrefix(p.ImportPath+"/", h) }) {
					t.Errorf("%s imports %s; only %v may", p.ImportPath, imp, allowed)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItGives(t *testing.T) {
	junk := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "base"}
	for _, p := range list(t, "./...") {
		if slices.Contains(junk, p.Name) {
			t.Errorf("%s: the name %q tells nothing", p.ImportPath, p.Name)
		}
		if len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue // tests only
		}
		found := ""
		for _, f := range append(p.GoFiles, p.CgoFiles...) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				if found != "" {
					t.Errorf("%s: two package comments, in %s and %s", p.ImportPath, found, f)
				}
				found = f
				if len(new(doc.Package).Synopsis(file.Doc.Text())) < 20 {
					t.Errorf("%s: the package comment says too little", p.ImportPath)
				}
			}
		}
		if found == "" {
			t.Errorf("%s: no package comment", p.ImportPath)
		}
	}
}
