package server

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/registry/content"
)

// The kernel sends blobs from their files: the registry neither reads nor copies their bytes, also with a log of requests, metrics and ranges.
func TestKernelSendsBlobs(t *testing.T) {
	url, pid, _ := childProcess(t, Options{Root: t.TempDir(), AccessLog: true})
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	data := random(8 << 20)
	if err := c.blob("a", data); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "trace")
	strace := exec.CommandContext(t.Context(), "strace", "-f", "-e", "trace=sendfile", "-o", out, "-p", fmt.Sprint(pid))
	says, err := strace.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := strace.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(says).ReadString('\n'); err != nil || !strings.Contains(line, "attached") {
		t.Fatalf("strace: %q, %v", line, err)
	}
	path := "/v2/a/blobs/" + string(content.SHA256.Of(data))
	if r, err := c.want("GET", path, nil, nil, 200); err != nil || string(r.body) != string(data) {
		t.Errorf("%d bytes, %v", len(r.body), err)
	}
	if r, err := c.want("GET", path, nil, []string{"Range: bytes=1000000-"}, 206); err != nil || string(r.body) != string(data[1000000:]) {
		t.Errorf("%d bytes of a range, %v", len(r.body), err)
	}
	_ = strace.Process.Signal(os.Interrupt) // it detaches
	_ = strace.Wait()
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for line := range strings.Lines(string(b)) {
		var n int
		if i := strings.LastIndex(line, "= "); i >= 0 {
			if _, err := fmt.Sscanf(line[i:], "= %d", &n); err == nil && n > 0 {
				sent += n
			}
		}
	}
	if want := 2*len(data) - 1000000; sent < want*9/10 {
		t.Errorf("the kernel sent %d bytes of %d:\n%.1000s", sent, want, b)
	}
}
