package build

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// newCanary returns a text that is nowhere else.
func newCanary() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return "canary" + hex.EncodeToString(b[:])
}

// forms are the ways in which a text may be written: as it is, in base64 at each place of its three, and in hexadecimal.
func forms(text string) (list [][]byte) {
	list = append(list, []byte(text), []byte(hex.EncodeToString([]byte(text))))
	for shift := range 3 {
		whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + text))
		list = append(list, []byte(whole[4:len(whole)-4])) // without the ends, which depend on what stands beside it
	}
	return list
}

// has reports whether data has a text in one of its forms, also when the data is compressed.
func has(data []byte, text string) bool {
	if slices.ContainsFunc(forms(text), func(f []byte) bool { return bytes.Contains(data, f) }) {
		return true
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return false
		}
		r = z
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(data))
		if err != nil {
			return false
		}
		defer z.Close()
		r = z
	default:
		return false
	}
	inner, _ := io.ReadAll(r) // what there is
	return len(inner) > 0 && has(inner, text)
}

// found returns the files below dir whose content or name has a text.
func found(t *testing.T, dir, text string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		where := strings.TrimPrefix(p, dir)
		if target, err := os.Readlink(p); has([]byte(where), text) || err == nil && has([]byte(target), text) {
			names = append(names, where)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(p)
		if has(data, text) {
			names = append(names, where+around(data, text))
		}
		if os.IsNotExist(err) {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// around returns what stands before and after a text, to find out how it came there.
func around(data []byte, text string) string {
	i := bytes.Index(data, []byte(text))
	if i < 0 {
		return ""
	}
	return fmt.Sprintf(" %q", data[max(0, i-80):min(len(data), i+len(text)+20)])
}

// guarded serves what h serves to those who know a password, and counts them.
func guarded(t *testing.T, password string, h http.Handler) (host string, served *int) {
	t.Helper()
	served = new(int)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, got, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(got), []byte(password)) == 0 {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		*served++
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), served
}

// startRegistry starts a registry that keeps its files in dir, and returns its address.
func startRegistry(t *testing.T, dir string) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	c := exec.Command("docker-registry", "serve", config)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait() // killed
	})
	u := &url.URL{Scheme: "http", Host: addr}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r, err := http.Get(u.String() + "/v2/")
		if err == nil {
			r.Body.Close()
			return u
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// Secrets, keys, and the passwords of proxies, registries and git servers are nowhere in what builds leave: not in the data root, an exported cache of any kind, an image
// with its provenance and list of packages, an output, the history, or a log. The same search finds a secret in each of these places when a build gives it away.
func TestSecretsAreNotExported(t *testing.T) {
	secret, variable, proxy, hub, site, token := newCanary(), newCanary(), newCanary(), newCanary(), newCanary(), newCanary()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	needles := map[string]string{
		"the key for ssh": string(key.Seed()), "the secret": secret, "the variable": variable, "the password of the proxy": proxy, "the password of the registry": hub,
		"the password of the git server": site, "the token for git": token,
	}
	e := startPly(t, "overlay2")
	dir := write(t, map[string]string{
		"key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})), "secret": secret, "token": token, "registry/x": "", "out/x": "",
		"context/Dockerfile": "FROM base AS tools\nRUN --mount=type=secret,id=file,required=true --mount=type=secret,id=variable,env=TOKEN,required=true --mount=type=ssh,required=true " +
			`test -S "$SSH_AUTH_SOCK" && ` + "grep -q canary /run/secrets/file && env | grep -q TOKEN=canary && env | grep -q HTTP_PROXY=.*canary && echo used > /used\n" +
			"ARG REPO\nADD --keep-git-dir=true $REPO /repo\nFROM base\nCOPY --from=tools /used /repo /x/\nCOPY a /a\n",
		"context/a":       "a\n",
		"context/Failing": "FROM base\nRUN --mount=type=secret,id=file,required=true --mount=type=secret,id=variable,env=TOKEN exit 9\n",
		// A step may do with a secret what it likes: into a layer, into a log, or an argument that is no secret.
		"context/Leaking": "FROM base\nARG VERSION\nRUN --mount=type=secret,id=file cp /run/secrets/file /leaked && cat /run/secrets/file\nLABEL version=$VERSION\n",
		"repo/file":       "x\n",
		"repo/Dockerfile": "FROM base\nCOPY file /\n",
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Chmod(at("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.run(t, "sh", "-ec", `cd "$1"; export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1
		git init -q -b main repo; cd repo; git add .; git -c user.name=a -c user.email=a@b commit -q -m first; git clone -q --bare . ../bare.git; git -C ../bare.git config http.receivepack false`, "sh", dir)
	backend := &cgi.Handler{Path: "/usr/lib/git-core/git-http-backend", Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
	byPassword, asked := guarded(t, site, backend)
	byToken, askedToken := guarded(t, token, backend)
	reg, pushed := guarded(t, hub, httputil.NewSingleHostReverseProxy(startRegistry(t, at("registry"))))
	if err := os.MkdirAll(filepath.Join(e.dir, "config"), 0o700); err != nil {
		t.Fatal(err)
	}
	auth := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, reg, base64.StdEncoding.EncodeToString([]byte("user:"+hub)))
	if err := os.WriteFile(filepath.Join(e.dir, "config/config.json"), []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	e.env = append(e.env, "VARIABLE="+variable)
	var printed strings.Builder
	ply := func(want int, args ...string) {
		t.Helper()
		out, code := e.try(dir, e.cli[0], args...)
		if printed.WriteString(out); code != want {
			t.Fatalf("%v: exit code %d\n%s", args, code, out)
		}
	}
	build := func(want int, args ...string) {
		t.Helper()
		ply(want, append([]string{"build", "--progress", "plain", "--provenance=mode=max", "--sbom=true"}, args...)...)
	}
	use := []string{
		"--ssh", "default=key", "--secret", "id=file,src=secret", "--secret", "id=variable,env=VARIABLE", "--secret", "id=GIT_AUTH_TOKEN,src=token",
		"--build-arg", "HTTP_PROXY=http://user:" + proxy + "@127.0.0.1:9", "--build-arg", "NO_PROXY=127.0.0.1", "--build-arg", "REPO=http://" + byToken + "/bare.git",
	}
	for _, mode := range []string{"min", "max"} {
		build(0, append(slices.Clone(use), "--push", "-t", reg+"/image:"+mode, "--cache-to", "type=local,dest=cache-"+mode+",mode="+mode,
			"--cache-to", "type=registry,ref="+reg+"/cache:"+mode+",mode="+mode, "context")...)
	}
	build(0, append(slices.Clone(use), "--push", "-t", reg+"/inline", "--cache-to", "type=inline", "context")...)
	build(0, append(slices.Clone(use), "--output", "type=oci,dest=out/oci.tar", "context")...)
	build(0, append(slices.Clone(use), "-t", "kept", "context")...)
	build(9, append(slices.Clone(use), "--no-cache", "-f", "context/Failing", "context")...)
	build(0, "--push", "-t", reg+"/git", "--cache-to", "type=local,dest=cache-git,mode=max", "http://user:"+site+"@"+byPassword+"/bare.git")
	build(0, append(slices.Clone(use), "-t", "cached", "--cache-from", "type=registry,ref="+reg+"/cache:max", "--cache-from", "type=local,src=cache-max", "context")...)
	if *asked == 0 || *askedToken == 0 || *pushed == 0 {
		t.Fatalf("the servers were asked %d, %d and %d times with their passwords", *asked, *askedToken, *pushed)
	}
	show := func() {
		t.Helper()
		for _, args := range [][]string{{"history", "--no-trunc", "kept"}, {"image", "inspect", "kept"}, {"builder", "du"}, {"system", "df", "-v"}} {
			ply(0, args...)
		}
		for id := range strings.FieldsSeq(e.ply(t, "builder", "ls", "-q")) {
			ply(0, "builder", "inspect", id)
			ply(0, "builder", "logs", id)
		}
	}
	show()
	places := map[string]string{
		"the data root": filepath.Join(e.dir, "data"), "the exec root": filepath.Join(e.dir, "run"), "the registry": at("registry"), "the outputs": at("out"),
		"a local cache (min)": at("cache-min"), "a local cache (max)": at("cache-max"), "a local cache of a git context": at("cache-git"),
	}
	log := func() string {
		b, err := os.ReadFile(filepath.Join(e.dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for what, needle := range needles {
		for where, dir := range places {
			for _, name := range found(t, dir, needle) {
				t.Errorf("%s is in %s: %s", what, where, name)
			}
		}
		if has([]byte(printed.String()), needle) {
			t.Errorf("%s was printed", what)
		}
		if has([]byte(log()), needle) {
			t.Errorf("%s is in plyd's log", what)
		}
	}

	// The twin: a build that gives secrets away, in the same places.
	leaked, argument := newCanary(), newCanary()
	if err := os.WriteFile(at("secret"), []byte(leaked), 0o600); err != nil {
		t.Fatal(err)
	}
	printed.Reset()
	leak := []string{"--secret", "id=file,src=secret", "--build-arg", "VERSION=" + argument, "-f", "context/Leaking"}
	build(0, append(slices.Clone(leak), "--push", "-t", reg+"/leak", "--cache-to", "type=local,dest=cache-min,mode=min", "--cache-to", "type=local,dest=cache-max,mode=max", "context")...)
	build(0, append(slices.Clone(leak), "--output", "type=oci,dest=out/leak.tar,compression=uncompressed", "context")...)
	build(0, append(slices.Clone(leak), "-t", "kept", "context")...)
	show()
	for _, where := range []string{"the data root", "the registry", "the outputs", "a local cache (min)", "a local cache (max)"} {
		if len(found(t, places[where], leaked)) == 0 {
			t.Errorf("a secret that a step writes into its layer is not found in %s", where)
		}
	}
	for _, where := range []string{"the data root", "the registry", "the outputs"} {
		if len(found(t, places[where], argument)) == 0 {
			t.Errorf("an argument that is no secret is not found in %s", where)
		}
	}
	for what, needle := range map[string]string{"what a step printed": leaked, "an argument": argument} {
		if !has([]byte(printed.String()), needle) {
			t.Errorf("%s is not found in what was printed", what)
		}
	}
	left(t, e)
}

// The search of these tests finds a text in every form in which it may be written.
func TestSearchFinds(t *testing.T) {
	text := newCanary()
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	fmt.Fprintf(z, "before %s after", text)
	z.Close()
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"plain": []byte("a" + text + "b"), "hexadecimal": []byte(hex.EncodeToString([]byte("a" + text + "b"))), "gzip": zipped.Bytes(), "zstd": zw.EncodeAll([]byte(text), nil),
		"gzip in zstd": zw.EncodeAll(zipped.Bytes(), nil), "base64": []byte(base64.StdEncoding.EncodeToString([]byte(text + "b"))),
		"base64 after one": []byte(base64.StdEncoding.EncodeToString([]byte("a" + text + "bc"))), "base64 after two": []byte(base64.RawURLEncoding.EncodeToString([]byte("ab" + text + "b"))),
	} {
		if !has(data, text) {
			t.Errorf("%s: not found", name)
		}
		if has(data, newCanary()) {
			t.Errorf("%s: another text was found", name)
		}
	}
}
