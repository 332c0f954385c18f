package docker

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ply/internal/build"
	"ply/internal/build/history"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
)

// The stream of a build in the words of the classic builder: output of a step comes after its title, also when it ran before its turn.
func TestBuildStream(t *testing.T) {
	id := strings.Repeat("b2", 32)
	w := newWorld(t)
	rec := w.do("POST", "/v1.51/build?t=web:1&t=other&dockerfile=D&buildargs=%7B%22A%22%3A%221%22%2C%22B%22%3Anull%7D&labels=%7B%22l%22%3A%22v%22%7D&networkmode=host&extrahosts=h:1.2.3.4&shmsize=64&target=x&nocache=1", strings.NewReader("tar"))
	want := []string{
		`{"stream":"[Warning] StageNameCasing: odd (line 1)\n"}`,
		`{"stream":"Step 1/2 : FROM busybox\n"}`, `{"stream":" ---> f0f0f0f0f0f0\n"}`,
		`{"stream":"Step 2/2 : RUN make\n"}`, `{"stream":" ---> Running in abababababab\n"}`, `{"stream":"out\n"}`, `{"stream":"late\n"}`,
		`{"stream":"Removing intermediate container abababababab\n"}`, `{"stream":" ---> a1a1a1a1a1a1\n"}`,
		`{"aux":{"ID":"sha256:` + id + `"}}`, `{"stream":"Successfully built b2b2b2b2b2b2\n"}`,
		`{"stream":"Successfully tagged web:1\n"}`, `{"stream":"Successfully tagged other:latest\n"}`,
	}
	if got := strings.Split(strings.TrimSpace(rec.Body.String()), "\r\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("status %d:\n%s\nwant:\n%s", rec.Code, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	o := w.builder.req.Front.Options
	for key, value := range map[string]string{
		"filename": "D", "build-arg:A": "1", "label:l": "v", "force-network-mode": "host", "add-hosts": "h=1.2.3.4", "shm-size": "64", "target": "x", "no-cache": "",
	} {
		if got, ok := o[key]; !ok || got != value {
			t.Errorf("option %s is %q, want %q", key, got, value)
		}
	}
	if _, ok := o["build-arg:B"]; ok || !w.builder.req.HostNetwork || len(w.builder.req.Tags) != 2 {
		t.Errorf("%+v", w.builder.req)
	}
}

func TestBuildFails(t *testing.T) {
	w := newWorld(t)
	w.builder.err = &build.StepError{Err: errors.New("exit code: 3"), Code: 3, Image: "sha256:" + "cc0000000000000000"}
	rec := w.do("POST", "/v1.51/build", strings.NewReader("tar"))
	body := rec.Body.String()
	if !strings.HasSuffix(strings.TrimSpace(body), `{"errorDetail":{"code":3,"message":"exit code: 3"},"error":"exit code: 3"}`) || !strings.Contains(body, "ply run -it --rm cc0000000000 sh") {
		t.Errorf("status %d: %s", rec.Code, body)
	}
	w.builder.err = errs.New(errs.Invalid, "no")
	if rec := w.do("POST", "/v1.51/build", strings.NewReader("tar")); !strings.Contains(rec.Body.String(), `"code":1,"message":"no"`) {
		t.Errorf("%s", rec.Body.String())
	}
}

// A parameter that the builder cannot do is an error that names it.
func TestBuildRefuses(t *testing.T) {
	for query, word := range map[string]string{
		"outputs=x": "outputs", "securityopt=x": "securityopt", "session=x": "session", "remote=client-session": "session", "isolation=hyperv": "isolation",
		"networkmode=container:mine": "container:mine", "buildargs=x": "buildargs", "labels=[]": "labels", "ulimits=x": "ulimits", "t=UPPER": "lowercase", "memory=x": "memory",
	} {
		w := newWorld(t)
		rec := w.do("POST", "/v1.51/build?"+query, strings.NewReader("tar"))
		if rec.Code < 400 || !strings.Contains(rec.Body.String(), word) {
			t.Errorf("%s: status %d: %s", query, rec.Code, rec.Body.String())
		}
	}
}

func TestBuildPrune(t *testing.T) {
	w := newWorld(t)
	for query, want := range map[string]build.Space{
		"keep-storage=5": {Reserved: 5}, "reserved-space=6": {Reserved: 6}, "max-used-space=7&reserved-space=5": {Reserved: 5, MaxUsed: 7}, "min-free-space=8": {MinFree: 8}, "": {},
	} {
		rec := w.do("POST", "/v1.51/build/prune?all=1&"+query, nil)
		if rec.Code != 200 || !strings.Contains(rec.Body.String(), `"SpaceReclaimed":7`) || !w.builder.pruned.All || w.builder.pruned.Space != want {
			t.Errorf("%s: status %d: %s %+v", query, rec.Code, rec.Body.String(), w.builder.pruned)
		}
	}
	if rec := w.do("POST", "/v1.51/build/prune?max-used-space=-1", nil); rec.Code != 400 {
		t.Errorf("a negative size: status %d: %s", rec.Code, rec.Body.String())
	}
}

// The history lists builds, shows one with its steps, sends its log as text, and forgets it.
func TestBuildHistory(t *testing.T) {
	w := newWorld(t)
	b := w.builder.history.Begin(history.Record{ID: "abcdef", Name: "a:1", Tags: []string{"a:1"}})
	v := &ops.Vertex{Digest: oci.DigestOf([]byte("v")), Name: "RUN make"}
	b.Log(v, false, []byte("made\n"))
	b.Done(v, solver.Outcome{Took: time.Second, Miss: "the instruction changed"})
	if err := b.End(nil, nil, errs.New(errs.Invalid, "it failed")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{"/v1.51/builds", `"ID":"abcdef","Name":"a:1","Status":"failed"`},
		{"/v1.51/builds/abc", `"Miss":"the instruction changed"`},
		{"/v1.51/builds/abc/logs", "#1 RUN make\n#1 0.000 made\n#1 DONE 1.0s\n"},
	} {
		if rec := w.do("GET", c.path, nil); rec.Code != 200 || !strings.Contains(rec.Body.String(), c.want) {
			t.Errorf("%s: status %d: %s", c.path, rec.Code, rec.Body.String())
		}
	}
	if rec := w.do("GET", "/v1.51/builds", nil); strings.Contains(rec.Body.String(), "Vertices") {
		t.Errorf("the list has steps: %s", rec.Body.String())
	}
	for _, want := range []int{204, 404} {
		if rec := w.do("DELETE", "/v1.51/builds/abcdef", nil); rec.Code != want {
			t.Errorf("DELETE: status %d, want %d", rec.Code, want)
		}
	}
	if rec := w.do("GET", "/v1.51/builds/abcdef/logs", nil); rec.Code != 404 {
		t.Errorf("logs of a removed build: status %d", rec.Code)
	}
}
