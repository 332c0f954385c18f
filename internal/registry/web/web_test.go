package web

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/registry/access"
	"ply/internal/registry/auth"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/repository"
	"ply/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// visitor has rights by its name: root everything, reader what is below team, no one what is below public.
type visitor string

func (v visitor) Name() string { return string(v) }
func (v visitor) Admin() bool  { return v == "root" }
func (v visitor) Whole() bool  { return v != "" }
func (v visitor) Owns(namespace string) bool {
	return v == "root" || v != "" && namespace == string(v)
}
func (v visitor) Sees(repo content.Repository) bool {
	return v.May(repo, access.Pull) || v == "lister" // whose token is for lists
}
func (v visitor) May(repo content.Repository, a access.Action) bool {
	switch {
	case v == "root":
		return true
	case a != access.Pull || repo == "":
		return false
	}
	return strings.HasPrefix(string(repo), "public/") || v == "reader" && strings.HasPrefix(string(repo), "team/")
}

// doors lets visitors in by a cookie with their name. A password is the name.
type doors struct{ open bool }

func (d doors) IsOpen() bool { return d.open }

func (d doors) Visitor(r *http.Request) (access.Caller, error) {
	if d.open {
		return access.Open.Identify(r)
	}
	c, err := r.Cookie("who")
	if err != nil {
		return visitor(""), nil
	}
	if c.Value == "expired" {
		return nil, errs.New(errs.Unauthorized, "expired")
	}
	return visitor(c.Value), nil
}

func (d doors) SignIn(w http.ResponseWriter, _ *http.Request, name, password string) error {
	if name != password {
		return errs.New(errs.Unauthorized, "wrong user name or password")
	}
	http.SetCookie(w, &http.Cookie{Name: "who", Value: name})
	return nil
}

func (d doors) SignOut(w http.ResponseWriter, _ *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: "who", MaxAge: -1})
}

type spaces map[string]string

func (s spaces) Visibility(name string) string { return s[name] }
func (s spaces) SetVisibility(name, visibility string) error {
	if visibility != "public" && visibility != "private" {
		return errs.New(errs.Invalid, "no visibility")
	}
	s[name] = visibility
	return nil
}

type world struct {
	t       *testing.T
	s       *repository.Service
	h       *Handler
	server  *httptest.Server
	deleted []string
	users   *auth.Users
	tokens  *auth.Tokens
	locked  bool // nothing can be changed
}

func newWorld(t *testing.T, open bool) *world {
	t.Helper()
	root := t.TempDir()
	meta, err := bolt.Open(filepath.Join(root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	bytes, err := directory.Open(durable.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, s: &repository.Service{Metadata: meta, Blobs: bytes}, tokens: auth.NewTokens(meta)}
	if w.users, err = auth.OpenUsers(root); err != nil {
		t.Fatal(err)
	}
	w.users.Cost = bcrypt.MinCost
	for _, name := range []string{"root", "reader"} {
		if _, err := w.users.Add(name, name, nil); err != nil && !open {
			t.Fatal(err)
		}
	}
	w.h = New(Options{
		Repositories: w.s, Blobs: bytes, Gate: doors{open}, Namespaces: spaces{}, Users: w.users, Tokens: w.tokens, ReadOnly: func() bool { return w.locked }, Free: func(context.Context) (int64, error) { return 12345, nil },
		Delete: func(_ *http.Request, c access.Caller, repo content.Repository, d content.Digest, tag content.Tag) error {
			if !c.May(repo, access.Delete) {
				return errs.New(errs.Forbidden, "you may not delete")
			}
			w.deleted = append(w.deleted, fmt.Sprint(repo, " ", d, tag))
			return nil
		},
	})
	w.server = httptest.NewServer(w.h)
	t.Cleanup(func() {
		w.server.Close()
		w.h.Close()
		for _, c := range []io.Closer{bytes, meta} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return w
}

// do makes a request and returns the status and the page.
func (w *world) do(method, path, who string, form url.Values, header ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	if who != "" {
		req.AddCookie(&http.Cookie{Name: "who", Value: who})
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(b)
}

// page gets a page and checks its status and that it has the texts.
func (w *world) page(path, who string, status int, texts ...string) string {
	w.t.Helper()
	resp, body := w.do(http.MethodGet, path, who, nil)
	if resp.StatusCode != status {
		w.t.Fatalf("GET %s as %q: %d, want %d\n%s", path, who, resp.StatusCode, status, body)
	}
	for _, s := range texts {
		if !strings.Contains(body, s) {
			w.t.Errorf("GET %s as %q: %q is missing in\n%s", path, who, s, body)
		}
	}
	return body
}

func (w *world) blob(repo content.Repository, b []byte) content.Descriptor {
	w.t.Helper()
	d := content.SHA256.Of(b)
	u, err := w.s.Begin(w.t.Context(), repo, "", content.SHA256)
	if err == nil {
		err = u.Append(w.t.Context(), bytes.NewReader(b), int64(len(b)))
	}
	if err == nil {
		err = w.s.Finish(w.t.Context(), u, d)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return content.Descriptor{Digest: d, Size: int64(len(b))}
}

func (w *world) manifest(repo content.Repository, tag string, doc any, mediaType string) content.Digest {
	w.t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		w.t.Fatal(err)
	}
	p := repository.Push{Repository: repo, ContentType: mediaType, Payload: b}
	if tag != "" {
		p.Tags = []content.Tag{content.Tag(tag)}
	}
	d, _, err := w.s.PutManifest(w.t.Context(), p)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// layer returns a layer with files; one whose name ends in a slash is a directory.
func layer(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if strings.HasSuffix(files[i], "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (w *world) image(repo content.Repository, tag, config string, layers ...[]byte) content.Digest {
	w.t.Helper()
	c := w.blob(repo, []byte(config))
	c.MediaType = oci.MediaTypeOCIConfig
	list := []content.Descriptor{}
	for _, l := range layers {
		d := w.blob(repo, l)
		d.MediaType = oci.MediaTypeOCILayerGzip
		list = append(list, d)
	}
	return w.manifest(repo, tag, map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeOCIManifest, "config": c, "layers": list}, oci.MediaTypeOCIManifest)
}

const someConfig = `{"architecture":"amd64","os":"linux","config":{"Env":["A=1","B=2"],"Cmd":["sh"],"Labels":{"l":"v"}},"rootfs":{"type":"layers","diff_ids":[]},
"history":[{"created_by":"ADD rootfs"},{"created_by":"ENV A=1","empty_layer":true},{"created_by":"COPY x"}]}`

// Everything that the pages show of an image.
func TestPages(t *testing.T) {
	w := newWorld(t, true)
	base := layer(t, "etc/", "", "etc/passwd", "root:x:0:0\n", "bin/sh", "\x7fELF\x00")
	one := w.image("team/app", "1", someConfig, base, layer(t, "etc/motd", "hello <b>you</b>\n", "old", "x"))
	w.image("team/app", "2", strings.Replace(someConfig, "B=2", "B=3", 1), base, layer(t, "etc/motd", "good bye\n", ".wh.bin", "", "new", "y"))
	w.manifest("team/app", "both", map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeOCIIndex, "manifests": []any{map[string]any{
		"mediaType": oci.MediaTypeOCIManifest, "digest": one, "size": 1, "platform": map[string]string{"architecture": "amd64", "os": "linux"}}}}, oci.MediaTypeOCIIndex)
	signature := w.blob("team/app", []byte(`{"signed":"yes"}`))
	signature.MediaType = "application/json"
	empty := w.blob("team/app", []byte("{}"))
	empty.MediaType = "application/vnd.example.signature"
	w.manifest("team/app", "", map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeOCIManifest, "config": empty, "layers": []any{signature},
		"subject": map[string]any{"mediaType": oci.MediaTypeOCIManifest, "digest": one, "size": 1}}, oci.MediaTypeOCIManifest)

	host := strings.TrimPrefix(w.server.URL, "http://")
	w.page("/", "", 200, `href="/r/team/app"`)
	w.page("/?q=nothing", "", 200, "0 found")
	w.page("/r/team/app", "", 200, "docker pull "+host+"/team/app:1", "docker push", `href="/r/team/app/-/both"`, "linux/amd64")
	shown := w.page("/r/team/app/-/1", "", 200, "ADD rootfs", "no layer", "ENV A=1", "COPY x", "l=v", string(one), "application/vnd.example.signature")
	if strings.Count(shown, "/files?layer=") != 2 {
		t.Error("the image has two layers")
	}
	w.page("/r/team/app/-/both", "", 200, "linux/amd64", "/r/team/app/-/"+url.PathEscape(string(one)))
	first, second := content.SHA256.Of(base), content.SHA256.Of(layer(t, "etc/motd", "hello <b>you</b>\n", "old", "x"))
	files := "/r/team/app/-/1/files?layer="
	w.page(files+string(first), "", 200, "path=etc", "bin/")
	w.page(files+string(first)+"&path=etc", "", 200, "passwd")
	w.page(files+string(first)+"&path=etc/passwd", "", 200, "root:x:0:0")
	w.page(files+string(first)+"&path=bin/sh", "", 200, "It is not text")
	w.page(files+string(second)+"&path=/etc/../etc/motd", "", 200, "hello &lt;b&gt;you&lt;/b&gt;")
	w.page(files+string(first)+"&path=absent", "", 404)
	w.page("/r/team/app/-/2/files?layer="+string(second), "", 404) // it is not a layer of this image
	w.page("/r/team/app/-/1/compare?with=2", "", 200, "1 in common", "Env B", "/new", "added or changed", "/bin", "removed", "/etc/motd", "changed")
	w.page("/r/team/app/-/both/compare?with=2", "", 200, "linux/amd64", "Env B")
	w.page("/storage", "", 200, "12.3kB", "team")
	w.page("/new?name=team/new", "", 200, "docker push "+host+"/team/new:TAG")
	w.page("/new?name=Not+One", "", 200, "invalid repository name")
	for _, path := range []string{"/r/absent", "/r/team/app/-/absent", "/r/team/app/-/1/other", "/r/team/app/-/1/files", "/other", "/r/Not%20One"} {
		w.page(path, "", 404)
	}
}

// A visitor finds nothing of what it may not pull, and changes nothing that it may not.
func TestRights(t *testing.T) {
	w := newWorld(t, false)
	l := layer(t, "secret", "the secret\n")
	for _, repo := range []content.Repository{"public/app", "team/app", "other/app"} {
		w.image(repo, "1", someConfig, l)
	}
	sees := map[string][]string{"": {"public/app"}, "reader": {"public/app", "team/app"}, "root": {"public/app", "team/app", "other/app"}}
	for who, mine := range sees {
		list := w.page("/", who, 200)
		for _, repo := range []string{"public/app", "team/app", "other/app"} {
			status := 404
			for _, m := range mine {
				if m == repo {
					status = 200
				}
			}
			if strings.Contains(list, `"/r/`+repo+`"`) != (status == 200) {
				t.Errorf("list of %q: %s", who, list)
			}
			for _, path := range []string{"", "/-/1", "/-/1/files?layer=" + string(content.SHA256.Of(l)), "/-/1/compare?with=1"} {
				w.page("/r/"+repo+path, who, status)
			}
			for path, confirm := range map[string]string{"/-/1/delete": "1", "/-/delete": repo} {
				before := len(w.deleted)
				resp, _ := w.do(http.MethodPost, "/r/"+repo+path, who, url.Values{"confirm": {confirm}})
				if deleted := len(w.deleted) > before; deleted != (who == "root") || deleted != (resp.StatusCode == http.StatusSeeOther) {
					t.Errorf("%q deletes %s%s: %d", who, repo, path, resp.StatusCode)
				}
			}
		}
		if status := map[string]int{"root": 200}[who]; status == 0 {
			w.page("/storage", who, 404)
		}
	}
	if resp, _ := w.do(http.MethodPost, "/r/team/app/-/1/delete", "root", url.Values{"confirm": {"2"}}); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("deleted without the name: %d", resp.StatusCode)
	}
	for who, status := range map[string]int{"": 403, "reader": 403, "root": 303} {
		if resp, _ := w.do(http.MethodPost, "/namespaces", who, url.Values{"name": {"team"}, "visibility": {"public"}}); resp.StatusCode != status {
			t.Errorf("%q makes a namespace: %d", who, resp.StatusCode)
		}
	}
}

// A request that a page of another site makes changes nothing.
func TestOtherSites(t *testing.T) {
	w := newWorld(t, false)
	w.image("team/app", "1", someConfig, layer(t, "a", "b"))
	for _, header := range []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example.com"} {
		if resp, _ := w.do(http.MethodPost, "/r/team/app/-/1/delete", "root", url.Values{"confirm": {"1"}}, header); resp.StatusCode != http.StatusForbidden || w.deleted != nil {
			t.Errorf("%s: %d, deleted %v", header, resp.StatusCode, w.deleted)
		}
	}
	if resp, _ := w.do(http.MethodPost, "/r/team/app/-/1/delete", "root", url.Values{"confirm": {"1"}}, "Sec-Fetch-Site: same-origin"); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("from our own page: %d", resp.StatusCode)
	}
	resp, _ := w.do(http.MethodGet, "/", "", nil)
	for name, want := range map[string]string{"Content-Security-Policy": "frame-ancestors 'none'", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
		if !strings.Contains(resp.Header.Get(name), want) {
			t.Errorf("%s: %q", name, resp.Header.Get(name))
		}
	}
}

func TestSignIn(t *testing.T) {
	w := newWorld(t, false)
	for back, to := range map[string]string{
		"/r/team/app?after=1": "/r/team/app?after=1", "https://evil.example.com/": "/", "//evil.example.com": "/", `/\evil.example.com`: "/", "": "/",
	} {
		resp, _ := w.do(http.MethodPost, "/sign-in", "", url.Values{"name": {"reader"}, "password": {"reader"}, "return": {back}})
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != to || len(resp.Cookies()) != 1 {
			t.Errorf("return %q: %d to %q", back, resp.StatusCode, got)
		}
	}
	resp, body := w.do(http.MethodPost, "/sign-in", "", url.Values{"name": {"reader"}, "password": {"wrong"}})
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "wrong user name or password") || len(resp.Cookies()) != 0 {
		t.Errorf("wrong password: %d %s", resp.StatusCode, body)
	}
	resp, _ = w.do(http.MethodGet, "/r/team/app", "expired", nil)
	if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != "/sign-in?return=%2Fr%2Fteam%2Fapp" {
		t.Errorf("expired session: %d to %q", resp.StatusCode, got)
	}
	w.page("/", "", 200, "Sign in")
	w.page("/", "reader", 200, "Sign out", "reader")
}

// What an image says of itself is text on a page.
func TestHostileImages(t *testing.T) {
	w := newWorld(t, true)
	evil := `"><script>alert(1)</script>` + "\u202e\x1b[31m"
	quoted, _ := json.Marshal(evil)
	config := `{"architecture":` + string(quoted) + `,"os":"linux","author":` + string(quoted) + `,"config":{"Env":[` + string(quoted) + `],"Cmd":[` + string(quoted) + `],"User":` + string(quoted) +
		`,"Labels":{` + string(quoted) + `:` + string(quoted) + `},"ExposedPorts":{` + string(quoted) + `:{}}},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":` + string(quoted) + `}]}`
	l := layer(t, "dir/"+evil, evil, "../../out", "x", "/abs", "y")
	w.image("a", "1", config, l)
	w.image("a", "2", someConfig, layer(t, "z", "z"))
	d := string(content.SHA256.Of(l))
	for _, path := range []string{
		"/", "/r/a", "/r/a/-/1", "/r/a/-/1/files?layer=" + d, "/r/a/-/1/files?layer=" + d + "&path=dir",
		"/r/a/-/1/files?layer=" + d + "&path=" + url.QueryEscape("dir/"+evil), "/r/a/-/2/compare?with=1", "/?q=" + url.QueryEscape(evil), "/new?name=" + url.QueryEscape(evil),
		"/sign-in?return=" + url.QueryEscape("/"+evil), "/r/a/-/1?q=" + url.QueryEscape(evil),
	} {
		body := w.page(path, "", 200)
		if strings.Contains(body, "<script>alert") || strings.Contains(body, `""><`) {
			t.Errorf("%s: the text of an image is a part of the page:\n%s", path, body)
		}
		if i := strings.Index(body, "<main"); strings.ContainsAny(body[i:], "\u202e\x1b") && !strings.Contains(path, "?q=") && !strings.Contains(path, "name=") {
			t.Errorf("%s: a control character is on the page", path)
		}
	}
	w.page("/r/a/-/1/files?layer="+d, "", 200, "out", "abs")
}

// A layer is read within bounds, whatever it is.
func TestHostileLayers(t *testing.T) {
	w := newWorld(t, true)
	var many []string
	for i := range maxEntries + 10 {
		many = append(many, fmt.Sprintf("d/%07d", i), "")
	}
	var long []string
	for i := range 40 {
		long = append(long, strings.Repeat(fmt.Sprintf("%04d/", i), 3000), "")
	}
	for name, tc := range map[string]struct {
		layer  []byte
		status int
		text   string
	}{
		"many":      {layer(t, many...), 200, "more files than this page shows"},
		"long":      {layer(t, long...), 200, "0001"},
		"no tar":    {[]byte("this is no archive at all"), 400, "cannot be read"},
		"cut off":   {layer(t, "a", "b")[:40], 400, ""},
		"empty":     {layer(t), 200, "empty in this layer"},
		"deep twin": {layer(t, strings.Repeat("d/", 500)+"f", "x"), 200, "d/"},
	} {
		t.Run(name, func(t *testing.T) {
			repo := content.Repository("x/" + strings.ReplaceAll(name, " ", "-"))
			w.image(repo, "1", someConfig, tc.layer)
			w.page("/r/"+string(repo)+"/-/1/files?layer="+string(content.SHA256.Of(tc.layer)), "", tc.status, tc.text)
		})
	}
	if w.h.trees.size > maxKept+maxEntries {
		t.Errorf("%d files are remembered", w.h.trees.size)
	}
}

// sparse returns a layer with a file of a hole of 2^62 bytes. Package archive/tar writes none, so the header is made here.
func sparse(t *testing.T) []byte {
	t.Helper()
	var records string
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=hole", "GNU.sparse.realsize=4611686018427387904"} {
		n := len(kv) + 3 // a blank, a newline, and the first digit of the length
		for len(fmt.Sprint(n)) != n-len(kv)-2 {
			n++
		}
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	block := func(name string, kind byte, data string) []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		h := b.Bytes()
		sum := 0
		for i, c := range h {
			if i == 156 {
				h[i], c = kind, kind
			}
			if i >= 148 && i < 156 {
				c = ' '
			}
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return append(h, append([]byte(data), make([]byte, -len(data)&511)...)...)
	}
	archive := append(block("x", tar.TypeXHeader, records), block("hole", tar.TypeReg, "0\n"+strings.Repeat("\x00", 510))...)
	archive = append(archive, make([]byte, 1024)...)
	if h, err := tar.NewReader(bytes.NewReader(archive)).Next(); err != nil || h.Size != 1<<62 {
		t.Fatalf("it is no sparse file: %+v, %v", h, err)
	}
	return archive
}

// A hole of a file takes no bytes of its layer: what is read of it is bounded all the same.
func TestSparseLayer(t *testing.T) {
	w := newWorld(t, true)
	l := sparse(t)
	w.image("x", "1", someConfig, l)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := w.h.trees.read(ctx, w.s, "x", content.SHA256.Of(l))
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, errs.Unavailable) && !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the layer is read without end")
	}
}

// A token for lists shows names, and nothing of what is in a repository.
func TestListsOnly(t *testing.T) {
	w := newWorld(t, false)
	w.image("team/app", "1", someConfig, layer(t, "a", "b"))
	w.page("/", "lister", 200, "team/app")
	for _, path := range []string{"/r/team/app", "/r/team/app/-/1"} {
		w.page(path, "lister", 404)
	}
}

// The files of a directory are listed once each, whatever order the layer has them in and whether it has the directories or not.
func TestBelow(t *testing.T) {
	w := newWorld(t, true)
	l := layer(t, "a/b/c", "1", "a.txt", "2", "a-b/x", "3", "a/z", "4", "a/", "", "a/b.c", "5", "only/implied/file", "6", "a/z", "44")
	w.image("r", "1", someConfig, l)
	tree, err := w.h.trees.read(t.Context(), w.s, "r", content.SHA256.Of(l))
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": "a a-b a.txt only", "a": "a/b a/b.c a/z", "a/b": "a/b/c", "only": "only/implied", "absent": ""} {
		var got []string
		for _, e := range tree.below(dir) {
			got = append(got, e.Path)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("below %q: %s, want %s", dir, s, want)
		}
	}
	if i, ok := tree.index("a/z"); !ok || tree.entries[i].Size != 2 {
		t.Error("the last of two entries counts")
	}
}
