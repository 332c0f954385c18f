package cli

import (
	"os/exec"
	"strings"
	"testing"
)

// The command line only uses the API: it links no code of the engine, and few libraries.
func TestLinksNoEngine(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "ply/cmd/ply").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	allowed := []string{"ply/cmd/ply", "ply/internal/cli", "ply/internal/errs", "ply/internal/filter", "ply/internal/manual", "ply/internal/oci", "ply/internal/version", "ply/internal/wire",
		"github.com/spf13/", "github.com/docker/go-units", "github.com/moby/patternmatcher", "github.com/moby/sys/mountinfo",
		"github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec", "github.com/containerd/errdefs", "github.com/containerd/platforms", "github.com/containerd/log", "github.com/sirupsen/logrus", "golang.org/x/crypto", "golang.org/x/text", "github.com/hashicorp/hcl", "github.com/hashicorp/go-cty-funcs", "github.com/apparentlymart/go-cidr", "github.com/google/uuid", "github.com/compose-spec/compose-go/v2/template", "github.com/compose-spec/compose-go/v2/dotenv", "go.yaml.in/yaml/v3", "github.com/zclconf/go-cty", "github.com/agext/levenshtein", "github.com/apparentlymart/go-textseg", "github.com/mitchellh/go-wordwrap", "golang.org/x/term", "golang.org/x/sys"}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		ok := dep == ""
		for _, a := range allowed {
			ok = ok || dep == a || strings.HasPrefix(dep, strings.TrimSuffix(a, "/")+"/")
		}
		if !ok {
			t.Errorf("cmd/ply links %s", dep)
		}
	}
}
