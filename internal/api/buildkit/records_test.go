package buildkit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	content "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"ply/internal/build/history"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/oci"
)

// builds is a builder with nothing but a history.
type builds struct {
	Builder
	h *history.History
}

func (b builds) History() *history.History { return b.h }

// The record of a build names its log and its provenance, and a client that reads them gets the bytes of these digests, whole or in parts.
func TestRecordsHaveTheirBlobs(t *testing.T) {
	dir := t.TempDir()
	h, err := history.Open(history.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte("0123456789abcde\n"), 200_000) // longer than a message
	v := &ops.Vertex{Digest: oci.DigestOf([]byte("v")), Name: "[1/1] RUN make"}
	b := h.Begin(history.Record{Name: "one"})
	b.Start(v)
	b.Log(v, false, long)
	b.Log(v, true, []byte("careful\n"))
	b.Done(v, solver.Outcome{})
	slsa := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	if err := b.End(nil, map[string]string{provenanceAnswer: slsa(`{"a":1}`), provenanceAnswer + "/linux/arm64": slsa(`{"b":2}`), "image.name": "x"}, nil); err != nil {
		t.Fatal(err)
	}

	s := New(Options{Builder: builds{h: h}, Sessions: NewSessions()})
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(far) }()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return near, nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		conn.Close()
		<-served
	}()
	list, err := controlapi.NewControlClient(conn).ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		t.Fatal(err)
	}
	e, err := list.Recv()
	if err != nil {
		t.Fatal(err)
	}
	rec := e.Record
	blobs := content.NewContentClient(conn)
	read := func(r *content.ReadContentRequest) string {
		t.Helper()
		stream, err := blobs.Read(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		var all bytes.Buffer
		for {
			m, err := stream.Recv()
			if err == io.EOF {
				return all.String()
			}
			if err != nil {
				t.Fatal(err)
			}
			if m.Offset != r.Offset+int64(all.Len()) {
				t.Errorf("a part at %d, want %d", m.Offset, r.Offset+int64(all.Len()))
			}
			all.Write(m.Data)
		}
	}
	check := func(d *controlapi.Descriptor) string {
		t.Helper()
		info, err := blobs.Info(t.Context(), &content.InfoRequest{Digest: d.Digest})
		if err != nil || info.Info.Size != d.Size {
			t.Fatalf("%v, %v", info, err)
		}
		data := read(&content.ReadContentRequest{Digest: d.Digest})
		if oci.DigestOf([]byte(data)) != oci.Digest(d.Digest) || int64(len(data)) != d.Size {
			t.Errorf("%d bytes with the digest %s, want %v", len(data), oci.DigestOf([]byte(data)), d)
		}
		return data
	}
	if got := check(rec.Result.Attestations[0]); got != `{"a":1}` {
		t.Errorf("provenance %q", got)
	}
	if got := check(rec.Results["linux/arm64"].Attestations[0]); got != `{"b":2}` {
		t.Errorf("provenance %q", got)
	}
	log := check(rec.Logs)
	if got := read(&content.ReadContentRequest{Digest: rec.Logs.Digest, Offset: 100, Size: 50}); got != log[100:150] {
		t.Errorf("a part: %q", got)
	}
	var out, errout bytes.Buffer
	var names []string
	completed := 0
	for rest := log; len(rest) > 0; {
		n := binary.LittleEndian.Uint32([]byte(rest[:4]))
		var m controlapi.StatusResponse
		if err := proto.Unmarshal([]byte(rest[4:4+n]), &m); err != nil {
			t.Fatal(err)
		}
		rest = rest[4+n:]
		for _, l := range m.Logs {
			if l.Stream == 1 {
				out.Write(l.Msg)
			} else {
				errout.Write(l.Msg)
			}
		}
		for _, v := range m.Vertexes {
			names = append(names, v.Name)
			if v.Completed != nil {
				completed++
			}
		}
	}
	if !bytes.Equal(out.Bytes(), long) || errout.String() != "careful\n" || strings.Join(names, " ") != v.Name+" "+v.Name || completed != 1 {
		t.Errorf("%d bytes of output, %q, vertices %q, %d completed", out.Len(), errout.String(), names, completed)
	}

	// Several readers, while another log is read.
	c := h.Begin(history.Record{Name: "two"})
	c.Start(v)
	c.Log(v, false, []byte("two"))
	if err := c.End(nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	second, err := h.Get(c.ID())
	if err != nil {
		t.Fatal(err)
	}
	other := s.records.log(t.Context(), second)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if i%2 == 0 {
				check(rec.Logs)
			} else {
				check(other)
			}
		})
	}
	wg.Wait()
	for _, r := range []*content.ReadContentRequest{
		{Digest: oci.DigestOf([]byte("none")).String()}, {Digest: "x"}, {Digest: rec.Logs.Digest, Offset: rec.Logs.Size + 1}, {Digest: rec.Logs.Digest, Offset: -1}, {Digest: rec.Logs.Digest, Size: -1},
	} {
		stream, err := blobs.Read(t.Context(), r)
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil || err == io.EOF {
			t.Errorf("%v is no error", r)
		}
	}
	if _, err := h.Remove(b.ID()); err != nil {
		t.Fatal(err)
	}
	stream, err := blobs.Read(t.Context(), &content.ReadContentRequest{Digest: rec.Result.Attestations[0].Digest})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil || err == io.EOF {
		t.Error("the provenance of a build that was removed is there")
	}
	if _, err := blobs.Delete(t.Context(), &content.DeleteContentRequest{Digest: rec.Logs.Digest}); err == nil {
		t.Error("a blob was deleted")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), c.ID()) {
			t.Errorf("left: %s", e.Name())
		}
	}
}
