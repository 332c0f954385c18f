package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A registry whose disk is full says so and serves what it has. When there is room again everything works without a restart, and uploads go on where
// they were.
func TestRegistryDiskFull(t *testing.T) {
	disk := smallDisk(t, "tmpfs")
	root := filepath.Join(disk, "root")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "ply-registry"), "--addr=127.0.0.1:0", "--root="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	}
	t.Cleanup(end)
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	url := "http://" + strings.TrimSpace(line[strings.LastIndex(line, " ")+1:])
	ask := func(method, path string, body []byte, status int) (string, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Fatalf("%s %s: status %d, want %d: %.300s", method, path, resp.StatusCode, status, b)
		}
		return string(b), resp.Header
	}
	digest := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	full := func(method, path string, body []byte) {
		t.Helper()
		text, _ := ask(method, path, body, http.StatusInsufficientStorage)
		if !strings.Contains(text, `"INSUFFICIENT_STORAGE"`) {
			t.Errorf("%s %s on a full disk: %s", method, path, text)
		}
	}
	small, big := make([]byte, 100_000), make([]byte, 4<<20)
	random := rand.NewChaCha8([32]byte{})
	for _, b := range [][]byte{small, big} {
		_, _ = random.Read(b) // never fails
	}
	doc := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/x","digest":"` + digest(small) +
		`","size":100000},"layers":[]}`)
	ask("POST", "/v2/a/blobs/uploads/?digest="+digest(small), small, 201)
	ask("PUT", "/v2/a/manifests/v1", doc, 201)
	_, begun := ask("POST", "/v2/a/blobs/uploads/", nil, 202)
	at := begun.Get("Location")
	ask("PATCH", at, big[:100_000], 202)

	filler := fill(t, disk)
	full("POST", "/v2/a/blobs/uploads/?digest="+digest(big), big)
	full("PATCH", at, big[100_000:])
	for _, path := range []string{"/v2/", "/healthz", "/v2/a/tags/list", "/v2/a/manifests/v1"} {
		ask("GET", path, nil, 200)
	}
	if got, _ := ask("GET", "/v2/a/blobs/"+digest(small), nil, 200); got != string(small) {
		t.Error("another blob is served")
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	_, head := ask("GET", at, nil, 204)
	var last int
	if _, err := fmt.Sscanf(head.Get("Range"), "0-%d", &last); err != nil || last < 99_999 || last >= len(big) {
		t.Fatalf("the upload is at %q, %v", head.Get("Range"), err)
	}
	ask("PATCH", at, big[last+1:], 202)
	ask("PUT", at+"?digest="+digest(big), nil, 201)
	if got, _ := ask("GET", "/v2/a/blobs/"+digest(big), nil, 200); got != string(big) {
		t.Error("the upload that was continued has other bytes")
	}
	ask("PUT", "/v2/a/manifests/v2", doc, 201)
	end()
	if text, err := exec.CommandContext(t.Context(), filepath.Join(bin, "ply-registry"), "check", "--root", root).CombinedOutput(); err != nil || !strings.Contains(string(text), " 0 findings") {
		t.Errorf("check: %v\n%s", err, text)
	}
}
