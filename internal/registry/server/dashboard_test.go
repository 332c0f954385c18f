package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The dashboard shows every metric of the registry, and none that there is not.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "packaging", "ply-registry-grafana.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Fatal("the dashboard is not JSON")
	}
	shown := map[string]bool{}
	for _, name := range regexp.MustCompile(`ply_registry_[a-z_]+`).FindAllString(string(b), -1) {
		shown[strings.TrimSuffix(name, "_bucket")] = true
	}
	known := map[string]bool{}
	for file, pattern := range map[string]string{
		filepath.Join("..", "observe", "observe.go"): `"(ply_registry_[a-z_]+[a-z])"`, "generation.go": `Gauges?\("([a-z_]+)"`,
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			known["ply_registry_"+strings.TrimPrefix(m[1], "ply_registry_")] = true
		}
	}
	if len(known) < 15 {
		t.Fatalf("found only %d metrics", len(known))
	}
	for name := range known {
		if !shown[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	for name := range shown {
		if !known[name] {
			t.Errorf("the dashboard shows %s, which there is not", name)
		}
	}
}
