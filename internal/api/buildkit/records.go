package buildkit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	content "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"ply/internal/build/history"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Media types of the blobs of a record, and the prefix of the answers with provenance, which a platform may follow.
const (
	statusType       = "application/vnd.buildkit.status.v0"
	provenanceType   = "application/vnd.in-toto+json"
	provenanceAnswer = "buildx.build.provenance"
	predicateKey     = "in-toto.io/predicate-type"
	predicateSLSA    = "https://slsa.dev/provenance/v1"
)

const (
	maxBlobs  = 10_000      // digests that are remembered
	spoolTime = time.Minute // how long a log is kept on the disk after it was read
)

// records serves the blobs that the records of the history name: what builds printed, in BuildKit's form, and their provenance. Clients read them as they read
// the content store of BuildKit, to write bundles of records.
type records struct {
	content.UnimplementedContentServer

	history func() *history.History

	mu    sync.Mutex
	blobs map[oci.Digest]recordBlob         // that clients were told of
	logs  map[string]*controlapi.Descriptor // by build; nil for a log that cannot be read
	spool *spool                            // the log that was read last
}

// recordBlob is a blob of a record.
type recordBlob struct {
	build  string
	answer string // the key of an answer; "" = the log
	size   int64
}

// spool is a log in a file without a name.
type spool struct {
	digest oci.Digest
	file   *os.File
	users  int
	idle   *time.Timer
}

func newRecords(h func() *history.History) *records {
	return &records{history: h, blobs: map[oci.Digest]recordBlob{}, logs: map[string]*controlapi.Descriptor{}}
}

// describe adds the descriptors of its blobs to the record of a build that has ended.
func (s *records) describe(ctx context.Context, r *history.Record, rec *controlapi.BuildHistoryRecord) {
	rec.Logs = s.log(ctx, r)
	for key, text := range r.Answers {
		platform, ok := strings.CutPrefix(key, provenanceAnswer)
		data, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			continue
		}
		d := oci.DigestOf(data)
		s.remember(d, recordBlob{build: r.ID, answer: key, size: int64(len(data))})
		info := &controlapi.BuildResultInfo{Attestations: []*controlapi.Descriptor{{
			MediaType: provenanceType, Digest: string(d), Size: int64(len(data)), Annotations: map[string]string{predicateKey: predicateSLSA},
		}}}
		if platform = strings.TrimPrefix(platform, "/"); platform == "" {
			rec.Result = info
			continue
		}
		if rec.Results == nil {
			rec.Results = map[string]*controlapi.BuildResultInfo{}
		}
		rec.Results[platform] = info
	}
}

func (s *records) remember(d oci.Digest, b recordBlob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.blobs) >= maxBlobs {
		clear(s.blobs)
		clear(s.logs)
	}
	s.blobs[d] = b
}

// log returns the descriptor of the log of a build; nil when there is none. It reads a log once.
func (s *records) log(ctx context.Context, r *history.Record) *controlapi.Descriptor {
	s.mu.Lock()
	desc, known := s.logs[r.ID]
	s.mu.Unlock()
	if known {
		return desc
	}
	h := sha256.New()
	n, err := writeStatus(ctx, s.history(), r, h)
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		d := oci.DigestOfHash(h)
		desc = &controlapi.Descriptor{MediaType: statusType, Digest: string(d), Size: n}
		s.remember(d, recordBlob{build: r.ID, size: n})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.logs) >= maxBlobs {
		clear(s.logs)
	}
	s.logs[r.ID] = desc
	return desc
}

// writeStatus writes what a build printed as BuildKit stores it: messages of progress, each after its length. The same record gives the same bytes.
func writeStatus(ctx context.Context, h *history.History, r *history.Record, w io.Writer) (total int64, err error) {
	out := bufio.NewWriterSize(w, 64<<10)
	send := func(m *controlapi.StatusResponse) error {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return err
		}
		n, err := out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(b))))
		total += int64(n)
		if err == nil {
			n, err = out.Write(b)
			total += int64(n)
		}
		return err
	}
	begun := map[int]bool{}
	vertex := func(i int) *controlapi.Vertex {
		st := &r.Steps[i]
		return &controlapi.Vertex{Digest: st.Digest.String(), Name: st.Name, Started: timestamppb.New(st.Started)}
	}
	begin := func(i int) error {
		if begun[i] {
			return nil
		}
		begun[i] = true
		return send(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{vertex(i)}})
	}
	_, err = h.Log(ctx, r.ID, func(l *history.Line) error {
		if l.Step < 0 || l.Step >= len(r.Steps) || len(l.Data) == 0 {
			return nil
		}
		if err := begin(l.Step); err != nil {
			return err
		}
		stream := int64(1)
		if l.Stderr {
			stream = 2
		}
		for data := l.Data; len(data) > 0; {
			part := data[:min(len(data), maxLogs)]
			data = data[len(part):]
			err := send(&controlapi.StatusResponse{Logs: []*controlapi.VertexLog{{
				Vertex: r.Steps[l.Step].Digest.String(), Timestamp: timestamppb.New(r.Started.Add(l.At)), Stream: stream, Msg: part,
			}}})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errs.DataLoss) { // the rest of a damaged log cannot be read
		return total, err
	}
	for i := range r.Steps {
		if err := begin(i); err != nil {
			return total, err
		}
		st := &r.Steps[i]
		if !st.Done {
			continue
		}
		v := vertex(i)
		v.Completed, v.Cached, v.Error = timestamppb.New(st.Started.Add(st.Took)), st.Cached, st.Error
		if err := send(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}}); err != nil {
			return total, err
		}
	}
	for _, text := range r.Warnings {
		w := &controlapi.VertexWarning{Level: 1, Short: []byte(text), Info: &pb.SourceInfo{}}
		if len(r.Steps) > 0 {
			w.Vertex = r.Steps[0].Digest.String()
		}
		if err := send(&controlapi.StatusResponse{Warnings: []*controlapi.VertexWarning{w}}); err != nil {
			return total, err
		}
	}
	return total, out.Flush()
}

func (s *records) blob(digest string) (oci.Digest, recordBlob, error) {
	d, err := oci.ParseDigest(digest)
	if err != nil {
		return "", recordBlob{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[d]
	if !ok || s.history() == nil {
		return "", b, errs.New(errs.NotFound, "no record of the history names the blob %s", d)
	}
	return d, b, nil
}

// Info implements content.ContentServer.
func (s *records) Info(_ context.Context, r *content.InfoRequest) (*content.InfoResponse, error) {
	d, b, err := s.blob(r.Digest)
	if err != nil {
		return nil, err
	}
	return &content.InfoResponse{Info: &content.Info{Digest: string(d), Size: b.size}}, nil
}

// Read implements content.ContentServer.
func (s *records) Read(r *content.ReadContentRequest, stream content.Content_ReadServer) error {
	d, b, err := s.blob(r.Digest)
	if err != nil {
		return err
	}
	if r.Offset < 0 || r.Size < 0 || r.Offset > b.size {
		return errs.New(errs.Invalid, "blob %s: no part of %d bytes at %d", d, r.Size, r.Offset)
	}
	in, done, err := s.open(stream.Context(), d, b)
	if err != nil {
		return err
	}
	defer done()
	left := b.size - r.Offset
	if r.Size > 0 {
		left = min(left, r.Size)
	}
	section := io.NewSectionReader(in, r.Offset, left)
	buf := make([]byte, min(left, contentChunk))
	for at := r.Offset; left > 0; {
		n, err := io.ReadFull(section, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return errs.New(errs.Internal, "blob %s: %w", d, err)
		}
		if err := stream.Send(&content.ReadContentResponse{Offset: at, Data: buf[:n]}); err != nil {
			return err
		}
		at, left = at+int64(n), left-int64(n)
	}
	return nil
}

// open opens a blob.
func (s *records) open(ctx context.Context, d oci.Digest, b recordBlob) (io.ReaderAt, func(), error) {
	r, err := s.history().Get(b.build)
	if err != nil {
		return nil, nil, err
	}
	if b.answer != "" {
		data, err := base64.StdEncoding.DecodeString(r.Answers[b.answer])
		if err != nil || int64(len(data)) != b.size {
			return nil, nil, errs.New(errs.NotFound, "the record of build %s has changed", b.build)
		}
		return strings.NewReader(string(data)), func() {}, nil
	}
	s.mu.Lock()
	if sp := s.spool; sp != nil && sp.digest == d {
		sp.users++
		s.mu.Unlock()
		return sp.file, func() { s.release(sp) }, nil
	}
	s.mu.Unlock()
	f, err := s.history().Spool()
	if err != nil {
		return nil, nil, err
	}
	n, err := writeStatus(ctx, s.history(), r, f)
	if err == nil && n != b.size {
		err = errs.New(errs.NotFound, "the log of build %s has changed", b.build)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	sp := &spool{digest: d, file: f, users: 1}
	s.mu.Lock()
	old := s.spool
	s.spool = sp
	if old != nil {
		s.drop(old)
	}
	s.mu.Unlock()
	return f, func() { s.release(sp) }, nil
}

// release ends a use of a spool. It is closed when it is not used for some time, or when another one has taken its place.
func (s *records) release(sp *spool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp.users--
	switch {
	case sp.users > 0:
	case s.spool != sp:
		_ = sp.file.Close() // it was only read
	case sp.idle == nil:
		sp.idle = time.AfterFunc(spoolTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.spool == sp {
				s.spool = nil
				s.drop(sp)
			}
		})
	default:
		sp.idle.Reset(spoolTime)
	}
}

// drop closes a spool that is not the last one any more, unless it is used. The caller has mu.
func (s *records) drop(sp *spool) {
	if sp.idle != nil {
		sp.idle.Stop()
	}
	if sp.users == 0 {
		_ = sp.file.Close() // it was only read
	}
}
