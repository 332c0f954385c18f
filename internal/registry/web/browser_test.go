package web

import (
	"bytes"
	"context"
	"encoding/json"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ply/internal/registry/access"
	"ply/internal/registry/auth"
	"ply/internal/registry/content"
)

// checkPage runs axe on a page, and notes what is wider than the window, and controls to which the Tab key does not lead in the order of the page or that do not show
// that they have the focus. It writes what it finds into the page.
const checkPage = `<script src="/axe.min.js"></script><script>
axe.run().then(r => {
  const found = r.violations.map(v => v.id + ": " + v.nodes.map(n => n.html + " " + n.failureSummary).join("; "));
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page is " + document.documentElement.scrollWidth + " wide, the window " + innerWidth);
  if (getComputedStyle(document.body).margin !== "0px") found.push("the page has no style");
  const controls = [...document.querySelectorAll("a, button, input, select, textarea, summary, [onclick], [role=button]")].filter(e => e.type !== "hidden" && !e.disabled && e.checkVisibility());
  const look = e => { const s = getComputedStyle(e); return [s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow, s.backgroundColor].join(); };
  for (const e of controls) {
    const before = look(e);
    e.focus();
    if (document.activeElement !== e || e.tabIndex !== 0) found.push("no key leads to " + e.outerHTML);
    else if (look(e) === before) found.push("the focus cannot be seen on " + e.outerHTML);
  }
  if (controls.length === 0) found.push("the page has no control");
  const p = document.createElement("pre");
  p.id = "found";
  p.textContent = JSON.stringify(found);
  document.body.append(p);
});
</script></body>`

var foundPattern = regexp.MustCompile(`(?s)<pre id="found">(.*?)</pre>`)

// checked serves the pages with the check in them, for which they may run scripts.
func checked(h http.Handler, axe []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/axe.min.js" {
			w.Header().Set("Content-Type", "text/javascript")
			_, _ = w.Write(axe)
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		for name, values := range rec.Header() {
			if name != "Content-Security-Policy" {
				w.Header()[name] = values
			}
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(bytes.Replace(rec.Body.Bytes(), []byte("</body>"), []byte(checkPage), 1))
	})
}

// chromium runs Debian's Chromium without a window and returns what it prints.
func chromium(t *testing.T, width, scheme string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(), "--window-size=" + width + ",900",
		"--blink-settings=preferredColorScheme=" + scheme, "--virtual-time-budget=20000"}, args...)
	cmd := exec.CommandContext(ctx, "chromium", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, stderr.String())
	}
	return string(out)
}

// The pages in a browser: axe finds nothing that a reader of the screen could not use, in light and dark, and nothing is wider than a phone.
// With PLY_SCREENSHOTS set, pictures of the pages are written into that directory.
func TestBrowser(t *testing.T) {
	if os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("runs at night")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	axe, err := os.ReadFile(filepath.Join(cache, "ply-clients", "axe.min.js"))
	if _, lerr := exec.LookPath("chromium"); err != nil || lerr != nil {
		t.Skip("needs chromium and axe, which make nightly installs")
	}
	w := newWorld(t, false)
	base := layer(t, "etc/", "", "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", "usr/share/a/very/long/path/to/a/file/with-a-name-that-does-not-end-and-goes-on-and-on", "x")
	w.image("public/app", "1.0", someConfig, base, layer(t, "etc/motd", "hello\n"))
	w.image("public/app", "1.1", strings.Replace(someConfig, "B=2", "B=3", 1), base, layer(t, "etc/motd", "good bye\n", ".wh.usr", ""))
	for _, name := range []content.Repository{"team/api", "team/web-front-end-with-a-long-name", "public/tools/linter"} {
		w.image(name, "latest", someConfig, base)
	}
	w.post("/people", "root", url.Values{"name": {"alice"}, "password": {"secret"}}, 303)
	w.post("/people/users/alice/grant", "root", url.Values{"pattern": {"a/very/long/pattern/of/repositories/that/does/not/end/**"}, "role": {"writer"}}, 303)
	w.post("/people/groups", "root", url.Values{"name": {"developers-of-the-front-end"}}, 303)
	w.post("/people/groups/developers-of-the-front-end/join", "root", url.Values{"user": {"alice"}}, 303)
	w.post("/people/groups/developers-of-the-front-end/claims", "root", url.Values{"claims": {"/engineering\n/web"}}, 303)
	w.post("/people/groups/developers-of-the-front-end/grant", "root", url.Values{"pattern": {"team/**"}, "role": {"admin"}}, 303)
	for _, user := range []string{"root", "alice"} {
		u, err := w.users.Find(user)
		if err == nil {
			_, _, err = w.tokens.Create(t.Context(), u, "continuous integration", []auth.TokenScope{{Repositories: "team/**", Actions: []access.Action{access.Pull, access.Push}}}, time.Hour)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first := string(content.SHA256.Of(base))
	pages := map[string]string{
		"repositories": "/", "found": "/?q=team", "repository": "/r/public/app", "image": "/r/public/app/-/1.0", "files": "/r/public/app/-/1.0/files?layer=" + first + "&path=etc",
		"file": "/r/public/app/-/1.0/files?layer=" + first + "&path=etc/passwd", "compare": "/r/public/app/-/1.0/compare?with=1.1", "new": "/new?name=" + url.QueryEscape("team/new"),
		"storage": "/storage", "tokens": "/tokens", "new-token": "/new-token", "users": "/people", "user": "/people/users/alice", "everyone": "/people/users/@anonymous",
		"groups": "/people/groups", "group": "/people/groups/developers-of-the-front-end", "sign-in": "/sign-in", "not-found": "/r/absent",
	}
	asRoot := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/sign-in" {
				r.AddCookie(&http.Cookie{Name: "who", Value: "root"})
			}
			if r.URL.Path == "/new-token" { // a page that only answers a form
				form := url.Values{"name": {"the build server"}, "repositories": {"team/** public/app"}, "actions": {"pull", "push"}, "days": {"30"}}.Encode()
				r = httptest.NewRequest(http.MethodPost, "/tokens", strings.NewReader(form))
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				r.AddCookie(&http.Cookie{Name: "who", Value: "root"})
			}
			h.ServeHTTP(w, r)
		})
	}
	server := httptest.NewServer(asRoot(checked(w.h, axe)))
	defer server.Close()
	plain := httptest.NewServer(asRoot(w.h))
	defer plain.Close()
	for name, path := range pages {
		t.Run(name, func(t *testing.T) {
			for _, look := range []struct{ name, width, scheme string }{{"light", "1200", "1"}, {"dark", "1200", "0"}, {"phone", "360", "1"}} {
				dom := chromium(t, look.width, look.scheme, "--dump-dom", server.URL+path)
				m := foundPattern.FindStringSubmatch(dom)
				if m == nil {
					t.Fatalf("%s: the check did not run:\n%s", look.name, dom)
				}
				var found []string
				if err := json.Unmarshal([]byte(html.UnescapeString(m[1])), &found); err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					t.Errorf("%s: %s", look.name, f)
				}
				if dir := os.Getenv("PLY_SCREENSHOTS"); dir != "" {
					chromium(t, look.width, look.scheme, "--screenshot="+filepath.Join(dir, name+"-"+look.name+".png"), plain.URL+path)
				}
			}
		})
	}
}
