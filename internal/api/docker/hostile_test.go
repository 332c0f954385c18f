package docker

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ply/internal/wire"
)

// message returns the text of an error answer. The test fails when the answer is not an error.
func message(t *testing.T, rec *httptest.ResponseRecorder) string {
	t.Helper()
	var body struct {
		Message *string `json:"message"`
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || body.Message == nil {
		t.Fatalf("answer %d is no error message: %q", rec.Code, rec.Body)
	}
	return *body.Message
}

func TestHostileRequests(t *testing.T) {
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	long := strings.Repeat("x", 100_000)
	for name, tc := range map[string]struct {
		method, target, body string
		header               []string
		status               int
		want                 string
	}{
		"dot dot":             {"GET", "/v1.51/images/%2e%2e/json", "", nil, 400, ". and .."},
		"dot dot slash":       {"GET", "/v1.51/containers/..%2f..%2fetc/json", "", nil, 400, ". and .."},
		"double slash":        {"GET", "//v1.51/containers/json", "", nil, 404, "page not found"},
		"empty name":          {"GET", "/v1.51/containers//json", "", nil, 404, "page not found"},
		"nul":                 {"GET", "/v1.51/images/a%00b/json", "", nil, 400, "control characters"},
		"newline":             {"GET", "/v1.51/containers/a%0d%0aX:y/json", "", nil, 400, "control characters"},
		"v0":                  {"GET", "/v0/info", "", nil, 400, "too old"},
		"v9999":               {"GET", "/v9999/info", "", nil, 400, "client version 9999 is too new"},
		"v1.huge":             {"GET", "/v1." + strings.Repeat("9", 40) + "/info", "", nil, 400, "too new"},
		"v99…9":               {"GET", "/v" + strings.Repeat("9", 40) + "/info", "", nil, 400, "too new"},
		"v1.":                 {"GET", "/v1./info", "", nil, 400, "too old"},
		"vx":                  {"GET", "/vx/info", "", nil, 404, "page not found"},
		"v1.2.3":              {"GET", "/v1.2.3/info", "", nil, 400, "too old"},
		"method":              {"PATCH", "/v1.51/info", "", nil, 404, "page not found"},
		"bad query":           {"GET", "/v1.51/containers/json?all=%zz", "", nil, 400, "invalid query"},
		"filters no JSON":     {"GET", "/v1.51/containers/json?filters=x", "", nil, 400, "invalid filters"},
		"filters number":      {"GET", "/v1.51/containers/json?filters=%7B%22status%22%3A5%7D", "", nil, 400, "invalid filter 'status'"},
		"filters bomb":        {"GET", "/v1.51/containers/json?filters=" + deep, "", nil, 400, "invalid filters"},
		"since text":          {"GET", "/v1.51/events?since=yesterday", "", nil, 400, "since"},
		"limit text":          {"GET", "/v1.51/containers/json?limit=many", "", nil, 400, "limit"},
		"t text":              {"POST", "/v1.51/containers/web/stop?t=soon", "", nil, 400, "parameter t"},
		"stats both":          {"GET", "/v1.51/containers/web/stats?stream=1&one-shot=1", "", nil, 400, "one-shot"},
		"wait condition":      {"POST", "/v1.51/containers/web/wait?condition=moon", "", nil, 400, "condition"},
		"start with body":     {"POST", "/v1.51/containers/web/start", `{"Binds":["/:/h"]}`, nil, 400, "non-empty request body"},
		"start checkpoint":    {"POST", "/v1.51/containers/web/start?checkpoint=absent", "", nil, 404, "checkpoint absent does not exist"},
		"checkpoint dir":      {"POST", "/v1.51/containers/web/start?checkpoint-dir=/x", "", nil, 400, "needs a checkpoint"},
		"checkpoint body":     {"POST", "/v1.51/containers/web/checkpoints", `{"CheckpointID":7}`, nil, 400, "CheckpointID"},
		"no body":             {"POST", "/v1.51/containers/create", "", nil, 400, "request body is empty"},
		"broken JSON":         {"POST", "/v1.51/containers/create", `{"Image":`, nil, 400, "ends too early"},
		"two values":          {"POST", "/v1.51/containers/create", `{"Image":"a"} {}`, nil, 400, "unexpected content"},
		"deep JSON":           {"POST", "/v1.51/containers/create", `{"Labels":` + deep + `}`, nil, 400, "nested deeper"},
		"array":               {"POST", "/v1.51/containers/create", `[]`, nil, 400, "request body"},
		"wrong field type":    {"POST", "/v1.51/containers/create", `{"Image":5}`, nil, 400, "Image: want string, got number"},
		"wrong nested type":   {"POST", "/v1.51/containers/create", `{"Image":"a","HostConfig":{"Memory":"1g"}}`, nil, 400, "HostConfig.Memory"},
		"no content type":     {"POST", "/v1.51/containers/create", `{"Image":"a"}`, []string{"Content-Type", ""}, 400, "must be 'application/json'"},
		"since after until":   {"GET", "/v1.51/events?since=99999999999&until=1", "", nil, 400, "cannot be after `until` time (1)"},
		"content type":        {"POST", "/v1.51/containers/create", `{"Image":"a"}`, []string{"Content-Type", "text/plain"}, 400, "must be 'application/json'"},
		"too large":           {"POST", "/v1.51/containers/create", `{"Image":"` + strings.Repeat("a", maxBody) + `"}`, nil, 413, "larger than 8 MiB"},
		"auth no base64":      {"POST", "/v1.51/images/create?fromImage=a", "", []string{"X-Registry-Auth", "%%%"}, 400, "not base64"},
		"auth no JSON":        {"POST", "/v1.51/images/create?fromImage=a", "", []string{"X-Registry-Auth", "aGVsbG8="}, 400, "not a JSON object"},
		"tag digest":          {"POST", "/v1.51/images/create?fromImage=a&tag=sha256:beef", "", nil, 400, "invalid digest"},
		"upper case":          {"POST", "/v1.51/images/create?fromImage=UPPER", "", nil, 400, "invalid reference"},
		"long name":           {"POST", "/v1.51/images/create?fromImage=" + strings.Repeat("a", 5000), "", nil, 400, "invalid reference"},
		"platform":            {"POST", "/v1.51/images/create?fromImage=a&platform=a/b/c/d/e", "", nil, 400, ""},
		"platforms to load":   {"POST", "/v1.51/images/load?platform=linux/amd64&platform=linux/arm64", "", nil, 400, "multiple platform"},
		"platform JSON":       {"GET", "/v1.51/images/busybox/json?platform=%7B", "", nil, 400, "invalid platform"},
		"import file":         {"POST", "/v1.51/images/create?fromSrc=file:///etc/shadow", "", nil, 400, "not an http or https address"},
		"import nothing":      {"POST", "/v1.51/images/create?fromSrc=http://", "", nil, 400, "not an http or https address"},
		"search nothing":      {"GET", "/v1.51/images/search", "", nil, 400, "term"},
		"save nothing":        {"GET", "/v1.51/images/get", "", nil, 400, "names"},
		"commit nothing":      {"POST", "/v1.51/commit", "", nil, 400, "container is missing"},
		"commit digest":       {"POST", "/v1.51/commit?container=web&repo=a&tag=sha256:" + strings.Repeat("a", 64), "", nil, 400, "cannot commit to digest"},
		"container of spaces": {"GET", "/v1.51/containers/%20/json", "", nil, 404, "No such container"},
		"long ID":             {"GET", "/v1.51/containers/" + long + "/json", "", nil, 404, "No such container"},
		"volume cluster":      {"POST", "/v1.51/volumes/create", `{"ClusterVolumeSpec":{}}`, nil, 400, "ClusterVolumeSpec"},
		"update devices":      {"POST", "/v1.51/containers/web/update", `{"Devices":[{"PathOnHost":"/dev/kmsg"}]}`, nil, 400, "Devices is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var body io.Reader
			if tc.body != "" {
				body = strings.NewReader(tc.body)
			}
			rec := w.do(tc.method, tc.target, body, tc.header...)
			if rec.Code != tc.status {
				t.Errorf("status %d, want %d: %s", rec.Code, tc.status, rec.Body)
			}
			if got := message(t, rec); !strings.Contains(got, tc.want) || len(got) > 6000 && name != "long ID" && name != "long name" {
				t.Errorf("message %.300q, want %q in it", got, tc.want)
			}
			if len(w.containers.specs) > 0 {
				t.Error("a container was created")
			}
		})
	}
}

// Every field of a create request, set to a value of every type, is refused with 400 or accepted. Nothing panics.
func TestWrongTypesInEveryField(t *testing.T) {
	whole := wire.CreateBody{Config: &wire.Config{}, HostConfig: &wire.HostConfig{}}
	b, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	host, ok := fields["HostConfig"].(map[string]any)
	if !ok {
		t.Fatal("no HostConfig")
	}
	delete(fields, "HostConfig")
	w := newWorld(t)
	n := 0
	try := func(format string) {
		for _, value := range []string{`"text"`, `-1`, `1e400`, `true`, `[1]`, `["x"]`, `{"a":1}`, `{"80/tcp":[{"HostPort":"x"}]}`, `null`, `[null]`, `{"a":null}`, `[[]]`} {
			n++
			rec := w.do("POST", "/v1.51/containers/create", strings.NewReader(fmt.Sprintf(format, value)))
			if rec.Code != 201 && rec.Code != 400 {
				t.Errorf("%s: status %d: %s", fmt.Sprintf(format, value), rec.Code, rec.Body)
			}
		}
	}
	for key := range fields {
		if key != "Image" {
			try(`{"Image":"a","` + key + `":%s}`)
		}
	}
	for key := range host {
		try(`{"Image":"a","HostConfig":{"` + key + `":%s}}`)
	}
	for _, key := range []string{"EndpointsConfig"} {
		try(`{"Image":"a","NetworkingConfig":{"` + key + `":%s}}`)
	}
	if n < 800 {
		t.Errorf("only %d requests", n)
	}
}

func TestCredentialsInEveryBase64(t *testing.T) {
	text := `{"username":"ü??>","password":"right>>>???","serveraddress":"r.example"}`
	for name, enc := range map[string]*base64.Encoding{"url": base64.URLEncoding, "raw url": base64.RawURLEncoding, "std": base64.StdEncoding, "raw std": base64.RawStdEncoding} {
		w := newWorld(t)
		rec := w.do("POST", "/v1.51/images/create?fromImage=busybox&tag=1&platform=linux/amd64", nil, "X-Registry-Auth", enc.EncodeToString([]byte(text)))
		if rec.Code != 200 || len(w.mover.creds) != 1 || w.mover.creds[0].Password != "right>>>???" {
			t.Errorf("%s: %d %s, credentials %v", name, rec.Code, rec.Body, len(w.mover.creds))
		}
	}
	w := newWorld(t)
	if rec := w.do("POST", "/v1.51/images/create?fromImage=busybox", nil, "X-Registry-Auth", "bnVsbA=="); rec.Code != 200 { // null
		t.Errorf("null credentials: %d %s", rec.Code, rec.Body)
	}
	if got := w.mover.pulls[0]; got != "docker.io/library/busybox all=true platform=" {
		t.Errorf("pull without a tag = %q, want all tags", got)
	}
}

// raw sends bytes to the server. It returns the answer up to want, or up to the end when want is "".
func raw(t *testing.T, sock, text, want string) string {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, sendErr := io.WriteString(conn, text) // the server may refuse before the end
	var got []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil || want != "" && strings.Contains(string(got), want) {
			if len(got) == 0 && sendErr == nil {
				t.Errorf("no answer: %v", err)
			}
			return string(got)
		}
	}
}

func TestHostileHTTP(t *testing.T) {
	t.Parallel()
	sock := newWorld(t).serve(t)
	for name, tc := range map[string]struct{ request, want string }{
		"length and chunked": {"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "no image specified"},
		"zero and chunked":   {"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "no image specified"},
		"two lengths":        {"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400 Bad Request"},
		"bad chunk":          {"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n", "400"},
		"header injection":   {"GET /v1.51/info\x01 HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"},
		"huge header":        {"GET /v1.51/info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 200_000) + "\r\n\r\n", "431"},
		"many headers":       {"GET /v1.51/info HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 50_000) + "\r\n", "431"},
		"no host":            {"GET /v1.51/_ping HTTP/1.1\r\n\r\n", "400 Bad Request"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := raw(t, sock, tc.request, tc.want); !strings.Contains(got, tc.want) && !(got == "" && tc.want == "431") {
				t.Errorf("answer %.300q, want %q in it", got, tc.want)
			}
		})
	}
}

func TestTornSaveIsCutOff(t *testing.T) {
	sock := newWorld(t).serve(t)
	got := raw(t, sock, "GET /v1.51/images/get?names=torn HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "")
	if !strings.Contains(got, "tar of torn") || strings.HasSuffix(got, "0\r\n\r\n") {
		t.Errorf("answer %q: want a body without its end", got)
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the client does not see that the archive is torn")
	}
}
