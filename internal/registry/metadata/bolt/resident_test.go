package bolt

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"ply/internal/registry/metadata"
)

// A process does not grow with what it has read of its database.
func TestResident(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const documents, size = 400, 256 << 10
	value := make([]byte, size)
	for i := range documents {
		value[0] = byte(i)
		if err := s.PutDocuments(context.Background(), "large", metadata.Document{Key: fmt.Sprint(i), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	most := 0
	for range 2 {
		for i := range documents {
			v, err := s.Document(t.Context(), "large", fmt.Sprint(i))
			if err != nil || len(v) != size || v[0] != byte(i) {
				t.Fatalf("document %d: %d bytes, %v", i, len(v), err)
			}
			most = max(most, residentFiles())
		}
	}
	// Between two looks it may read so much, and the kernel maps some more.
	if limit := maxResident + residentEvery*size + 16<<20; most == 0 || most > limit {
		t.Errorf("%d bytes of files are mapped, want %d at most of %d that were read", most, limit, documents*size)
	}
}
