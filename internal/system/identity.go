package system

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"ply/internal/durable"
)

const idLen = 36

// Identity returns the ID of the engine of a data root, in the form of a UUID. The first call for a data root makes it.
func Identity(fsys durable.FS, dataRoot string) (string, error) {
	name := filepath.Join(dataRoot, "engine-id")
	b, err := durable.ReadFile(fsys, name, 100)
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == idLen {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var r [16]byte
	rand.Read(r[:])
	id := fmt.Sprintf("%x-%x-%x-%x-%x", r[:4], r[4:6], r[6:8], r[8:10], r[10:])
	return id, durable.WriteFile(fsys, name, []byte(id+"\n"), 0o600)
}
