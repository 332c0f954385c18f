package docker

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"ply/internal/container/spec"
)

// 0 and less mean unlimited in an update, and no change before version 1.40 of the API, whose clients always send 0.
func TestUpdateOfPidsLimit(t *testing.T) {
	for _, c := range []struct {
		version, body string
		want          any
	}{
		{"1.51", `{}`, nil}, {"1.51", `{"PidsLimit":null}`, nil}, {"1.51", `{"PidsLimit":0}`, -1}, {"1.51", `{"PidsLimit":-1}`, -1},
		{"1.51", `{"PidsLimit":-7}`, -1}, {"1.51", `{"PidsLimit":5}`, 5}, {"1.40", `{"PidsLimit":0}`, -1}, {"1.39", `{"PidsLimit":0}`, nil},
		{"1.39", `{"PidsLimit":-1}`, nil}, {"1.24", `{"PidsLimit":5}`, nil},
	} {
		w := newWorld(t)
		rec := w.do("POST", "/v"+c.version+"/containers/web/update", strings.NewReader(c.body))
		got := "<nil>"
		if n := w.containers.limits.PidsLimit; n != nil {
			got = fmt.Sprint(*n)
		}
		if rec.Code != http.StatusOK || got != fmt.Sprint(c.want) {
			t.Errorf("%s %s = %d, limit %s, want %v", c.version, c.body, rec.Code, got, c.want)
		}
	}
}

// Inspect shows unlimited as 0, and no limit as null.
func TestInspectOfPidsLimit(t *testing.T) {
	for limit, want := range map[int64]string{-1: "0", 0: "0", 50: "50"} {
		sp := spec.Spec{Resources: spec.Resources{PidsLimit: &limit}}
		if got := fmt.Sprint(*resourcesOf(&sp).PidsLimit); got != want {
			t.Errorf("a limit of %d is shown as %s, want %s", limit, got, want)
		}
	}
	if got := resourcesOf(&spec.Spec{}).PidsLimit; got != nil {
		t.Errorf("no limit is shown as %d", *got)
	}
}

// Published ports change when the body has them; an empty set publishes none.
func TestUpdateOfPorts(t *testing.T) {
	for body, want := range map[string]string{
		`{}`:                    "<nil>",
		`{"PortBindings":null}`: "<nil>",
		`{"PortBindings":{}}`:   "&{[]}",
		`{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`: "&{[{tcp 80 invalid IP 8080 0 false}]}",
	} {
		w := newWorld(t)
		rec := w.do("POST", "/v1.51/containers/web/update", strings.NewReader(body))
		if got := fmt.Sprint(w.containers.ports); rec.Code != http.StatusOK || got != want {
			t.Errorf("%s: %d, ports %s, want %s", body, rec.Code, got, want)
		}
	}
	w := newWorld(t)
	if rec := w.do("POST", "/v1.51/containers/web/update", strings.NewReader(`{"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}`)); rec.Code != http.StatusBadRequest || w.containers.ports != nil {
		t.Errorf("bad port: %d %v", rec.Code, w.containers.ports)
	}
}
