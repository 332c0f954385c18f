package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ShuttingDown reports whether systemd is ending this system, to halt it or to boot it again. It is false without systemd.
func ShuttingDown() bool { return shuttingDown("/") }

func shuttingDown(root string) bool {
	if st, err := os.Stat(filepath.Join(root, "run/systemd/system")); err != nil || !st.IsDir() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() // it fails in every state but one
	return strings.TrimSpace(string(out)) == "stopping"
}
