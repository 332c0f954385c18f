package build

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestToldOptions(t *testing.T) {
	got := told(map[string]string{
		"build-arg:VERSION": "1", "label:l": "v", "build-arg:API_TOKEN": "hidden", "build-arg:http_proxy": "http://user:hidden@proxy", "filename": "Dockerfile",
		"build-arg:Z_LONG": strings.Repeat("x", maxTold),
	})
	if want := map[string]string{"build-arg:VERSION": "1"}; !maps.Equal(got, want) {
		t.Errorf("told %v, want %v", slices.Sorted(maps.Keys(got)), want)
	}
	if got := told(map[string]string{"build-arg:FROM": "https://user:hidden@host/x", "label:l": "v"}); len(got) != 2 || strings.Contains(got["build-arg:FROM"], "hidden") {
		t.Errorf("told %v, want both, without the password", got)
	}
}
