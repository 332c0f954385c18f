package change_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/image/change"
	"ply/internal/oci"
)

// differences are the changes that docker 20.10, whose answers testdata/docker.json has, treats in another way.
var differences = map[string]string{
	"CMD": "BuildKit's Dockerfile has an empty command for the shell, docker 20.10 none",

	"STOPSIGNAL SIGQUIT": "later versions of docker allow STOPSIGNAL",
	"STOPSIGNAL 9":       "later versions of docker allow STOPSIGNAL",
	"STOPSIGNAL RTMIN+3": "later versions of docker allow STOPSIGNAL",
}

// Changes do what docker makes of them: testdata/docker.json has the configs and errors of `docker import --change` of docker 20.10.
func TestApplyAsDocker(t *testing.T) {
	data, err := os.ReadFile("testdata/docker.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Changes []string
		Config  *oci.RunConfig
		Error   string
	}
	if err := json.Unmarshal(data, &cases); err != nil || len(cases) < 90 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, c := range cases {
		name := strings.Join(c.Changes, "; ")
		got := oci.RunConfig{}
		diff := ""
		switch err := change.Apply(&got, c.Changes); {
		case (err != nil) != (c.Error != ""):
			diff = fmt.Sprintf("%v, docker says %q", err, c.Error)
		case err == nil:
			diff = cmp.Diff(text(t, c.Config), text(t, got))
		}
		why, known := differences[name]
		if diff != "" && !known {
			t.Errorf("%q: docker (-) and ply (+):\n%s", name, diff)
		}
		if diff == "" && known {
			t.Errorf("%q does what docker does, not: %s", name, why)
		}
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
