package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// unrouted are the paths of the API's description that this engine does not have, with the reason.
var unrouted = map[string]string{
	"GET /images/{}/attestations": "since 1.55, this engine speaks 1.51",
}

// TestEveryRouteOfTheSwagger reads the description of the API and fails on a path without a route.
func TestEveryRouteOfTheSwagger(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	variable := regexp.MustCompile(`\{[^}]*\}`)
	checked := 0
	for _, file := range []string{"swagger.yaml", "docs/v1.25.yaml", "docs/v1.40.yaml", "docs/v1.44.yaml", "docs/v1.51.yaml"} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), file))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range swaggerRoutes(string(text)) {
			checked++
			method, path, _ := strings.Cut(r, " ")
			concrete := variable.ReplaceAllString(path, "x")
			rt, _ := match(w.api.routes, method, concrete)
			reason, excluded := unrouted[method+" "+variable.ReplaceAllString(path, "{}")]
			switch {
			case rt == nil && !excluded:
				t.Errorf("%s: %s: no route", file, r)
			case rt != nil && excluded:
				t.Errorf("%s: %s: routed although excluded (%s)", file, r, reason)
			}
		}
	}
	if checked < 400 {
		t.Errorf("only %d routes were found in the swagger files", checked)
	}
}

// swaggerRoutes returns "METHOD /path" for each route. It finds them by the indentation of the file.
func swaggerRoutes(text string) []string {
	var routes []string
	_, paths, _ := strings.Cut(text, "\npaths:\n")
	path := ""
	for _, line := range strings.Split(paths, "\n") {
		switch {
		case strings.HasPrefix(line, "  /"):
			path = strings.Trim(strings.TrimSuffix(strings.TrimSpace(line), ":"), `"'`)
		case strings.HasPrefix(line, "    ") && !strings.HasPrefix(line, "     ") && strings.HasSuffix(line, ":"):
			switch m := strings.TrimSuffix(strings.TrimSpace(line), ":"); m {
			case "get", "head", "post", "put", "delete":
				routes = append(routes, strings.ToUpper(m)+" "+path)
			}
		}
	}
	return routes
}
