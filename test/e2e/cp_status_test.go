package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// archiveCase is one raw request to the archive of a container.
type archiveCase struct {
	name   string
	method string
	query  string // without "?"
	body   func(testing.TB) []byte
	other  string // container; "" = the one with the tree
}

type tarEntry struct {
	name, data string
	kind       byte
}

func tarOf(entries ...tarEntry) func(testing.TB) []byte {
	return func(t testing.TB) []byte {
		t.Helper()
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, e := range entries {
			h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o755, ModTime: cpOld}
			if e.kind == tar.TypeSymlink {
				h.Linkname = e.data
			} else if e.kind == tar.TypeReg {
				h.Size = int64(len(e.data))
			}
			if err := tw.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				if _, err := io.WriteString(tw, e.data); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
}

var archiveTree = tarOf(
	tarEntry{"t", "", tar.TypeDir}, tarEntry{"t/f", "file", tar.TypeReg}, tarEntry{"t/d", "", tar.TypeDir}, tarEntry{"t/d/x", "x", tar.TypeReg},
	tarEntry{"t/lf", "f", tar.TypeSymlink}, tarEntry{"t/ld", "d", tar.TypeSymlink}, tarEntry{"t/dang", "nowhere", tar.TypeSymlink},
	tarEntry{"t/loop", "loop", tar.TypeSymlink}, tarEntry{"t/up", "../../../t/f", tar.TypeSymlink}, tarEntry{"t/fifo", "", tar.TypeFifo},
	tarEntry{"t/put", "", tar.TypeDir}, tarEntry{"t/put/d", "", tar.TypeDir}, tarEntry{"t/put/f", "old", tar.TypeReg}, tarEntry{"t/put/ld", "d", tar.TypeSymlink},
)

// archiveCases returns the requests. Those that write come last, in the order in which they are sent.
func archiveCases() []archiveCase {
	var all []archiveCase
	add := func(method, query string, body func(testing.TB) []byte, label string) {
		all = append(all, archiveCase{name: strings.TrimSpace(method + " " + query + " " + label), method: method, query: query, body: body})
	}
	escape := func(path string) string { return "path=" + url.QueryEscape(path) }
	for _, method := range []string{"HEAD", "GET"} {
		for _, path := range []string{
			"/", "/t/f", "/t/f/", "/t/f/.", "/t/d", "/t/d/", "/t/d/.", "/t/d/..", "t/f", "/t/lf", "/t/lf/", "/t/lf/.", "/t/ld", "/t/ld/", "/t/ld/.", "/t/dang", "/t/dang/",
			"/t/loop", "/t/loop/", "/t/loop/x", "/t/up", "/t/fifo", "/t/none", "/t/none/", "/none/x", "/t/f/x", "/../t/f", "/t/d/../f", ".", "/t/" + strings.Repeat("n", 256), "/t/d\x00",
		} {
			add(method, escape(path), nil, "")
		}
		add(method, "", nil, "without a path")
		add(method, "path=", nil, "")
		all = append(all, archiveCase{name: method + " of an absent container", method: method, query: "path=/", other: "nosuch"})
	}
	file, dir := tarOf(tarEntry{"n", "new", tar.TypeReg}), tarOf(tarEntry{"n", "", tar.TypeDir})
	for _, path := range []string{"/t/put", "/t/put/", "/t/put/.", "/t/put/d", "/t/put/ld", "/t/put/ld/", "/t/put/f", "/t/put/f/", "/t/f/x", "/t/put/none", "/t/put/none/", "/t/dang", "/t/loop", ".", "/t/put/../put"} {
		add("PUT", escape(path), file, "")
	}
	add("PUT", "", file, "without a path")
	add("PUT", "path=", file, "")
	all = append(all, archiveCase{name: "PUT into an absent container", method: "PUT", query: "path=/", body: file, other: "nosuch"})
	put := escape("/t/put")
	junk := func(testing.TB) []byte { return bytes.Repeat([]byte("junk"), 500) }
	add("PUT", put, func(testing.TB) []byte { return nil }, "an empty body")
	add("PUT", put, tarOf(), "an empty tar")
	add("PUT", put, junk, "junk")
	add("PUT", put, func(t testing.TB) []byte { return file(t)[:700] }, "half a tar")
	add("PUT", put, func(t testing.TB) []byte {
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		if _, err := zw.Write(file(t)); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}, "a compressed tar")
	add("PUT", put+"&noOverwriteDirNonDir=1", tarOf(tarEntry{"d", "new", tar.TypeReg}), "a file over a directory")
	add("PUT", put+"&noOverwriteDirNonDir=1", tarOf(tarEntry{"f", "", tar.TypeDir}), "a directory over a file")
	add("PUT", put+"&noOverwriteDirNonDir=junk", dir, "")
	add("PUT", put+"&copyUIDGID=1", dir, "")
	add("PUT", put, tarOf(tarEntry{"../../out", "x", tar.TypeReg}), "a name that climbs")
	add("PUT", put, tarOf(tarEntry{"f", "", tar.TypeDir}), "a directory over a file, allowed")
	add("PUT", put, tarOf(tarEntry{"d", "new", tar.TypeReg}), "a file over a directory, allowed")
	return all
}

// answer sends the request and returns the status of the answer, with the message of an error and what the header tells of the
// path.
func (c archiveCase) answer(t testing.TB, client *http.Client, id string) string {
	t.Helper()
	if c.other != "" {
		id = c.other
	}
	var body io.Reader
	if c.body != nil {
		body = bytes.NewReader(c.body(t))
	}
	req, err := http.NewRequestWithContext(t.Context(), c.method, "http://engine/v1.41/containers/"+id+"/archive?"+c.query, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-tar")
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Sprintf("error %v\n", err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s\n", resp.StatusCode, resp.Header.Get("Content-Type"))
	if stat := resp.Header.Get("X-Docker-Container-Path-Stat"); stat != "" {
		raw, err := base64.StdEncoding.DecodeString(stat)
		var s struct {
			Name       string
			Mode       uint32
			LinkTarget string
		}
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		if err != nil {
			t.Errorf("%s: header %q: %v", c.name, stat, err)
		}
		fmt.Fprintf(&b, "%s %v link %q\n", s.Name, os.FileMode(s.Mode), s.LinkTarget)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		fmt.Fprintf(&b, "body: %v\n", err)
	}
	var failed struct{ Message string }
	if resp.StatusCode >= 400 && len(data) > 0 {
		if err := json.Unmarshal(data, &failed); err != nil {
			t.Errorf("%s: answer %q: %v", c.name, data, err)
		}
		fmt.Fprintf(&b, "! %s\n", cpNoise.ReplaceAllString(strings.NewReplacer(id, "CONTAINER", "\x00", `\0`).Replace(strings.TrimSpace(failed.Message)), ""))
	}
	return b.String()
}

// archiveAnswers makes a container with the tree and sends it all requests.
func archiveAnswers(t testing.TB, c cpClient, cases []archiveCase) map[string]string {
	t.Helper()
	id := strings.TrimSpace(c.must(t, nil, "create", "busybox", "sh"))
	defer c.must(t, nil, "rm", id)
	c.must(t, bytes.NewReader(archiveTree(t)), "cp", "-", id+":/")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.sock)
	}}}
	defer client.CloseIdleConnections()
	answers := map[string]string{}
	for _, a := range cases {
		answers[a.name] = a.answer(t, client, id)
	}
	return answers
}

// comparable reduces the answers to status, type and header. Docker's engine answers 500 where a path, an option or an archive of the
// client is at fault, and plyd 400. Each error has a message; its words are compared where clients show them, in TestCpRules.
func comparable(t testing.TB, cases []archiveCase, answers map[string]string) map[string]string {
	t.Helper()
	reduced := map[string]string{}
	for _, c := range cases {
		var b strings.Builder
		message := false
		for line := range strings.Lines(answers[c.name]) {
			if message = strings.HasPrefix(line, "! "); !message {
				b.WriteString(line)
			}
		}
		text := b.String()
		if rest, ok := strings.CutPrefix(text, "500 "); ok {
			text = "400 " + rest
		}
		if text >= "4" && !message && c.method != "HEAD" {
			t.Errorf("%s: no message: %s", c.name, text)
		}
		reduced[c.name] = text
	}
	return reduced
}

// TestArchiveAnswers compares the statuses and headers of raw requests with those that Docker's own engine gave.
func TestArchiveAnswers(t *testing.T) {
	cases := archiveCases()
	var named []cpCase
	for _, c := range cases {
		named = append(named, cpCase{name: c.name})
	}
	golden := filepath.Join("testdata", "cp", "answers.txt")
	w := newWorld(t)
	w.busybox()
	if *updateCp {
		c := cpClient{program: w.program("docker20"), sock: startDockerd(t), dir: t.TempDir()}
		c.must(t, nil, "import", filepath.Join(images, "busybox.tar"), "busybox")
		writeOutcomes(t, golden, named, archiveAnswers(t, c, cases))
	}
	c := cpClient{program: w.program("docker"), sock: w.sock, dir: t.TempDir()}
	got := archiveAnswers(t, c, cases)
	for name, answer := range got {
		if strings.HasPrefix(answer, "5") {
			t.Errorf("%s: %s", name, answer)
		}
	}
	compareOutcomes(t, named, comparable(t, cases, got), comparable(t, cases, readOutcomes(t, golden)))
}
