package s3

import (
	"testing"
	"time"

	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/content"
)

func TestRecord(t *testing.T) {
	b, err := record.Marshal(stateVersion, stateRecord{Repository: "a/b", Owner: "alice", Algorithm: content.SHA512, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Offset: 7, Hash: []byte("hash"), Multipart: "id", PartSize: 5, Parts: []string{"etag"}, Tail: "uploads/x/7-y", TailSize: 2, Complete: true})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "state.v1.json", b)
}
