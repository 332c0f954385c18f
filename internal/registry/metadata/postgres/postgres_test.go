package postgres

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/metadatatest"
	"ply/internal/registry/metadata/postgres/postgrestest"
	"ply/test/leak"
)

var server *postgrestest.Server

func TestMain(m *testing.M) {
	code := postgrestest.Main(m, func(s *postgrestest.Server) { server = s })
	if err := leak.Find(); code == 0 && err != nil {
		os.Stderr.WriteString(err.Error())
		code = 1
	}
	os.Exit(code)
}

func open(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{URL: url, Patience: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSuite(t *testing.T) {
	metadatatest.Run(t, func(t *testing.T) metadata.Store { return open(t, server.Database(t)) })
}

func TestRecord(t *testing.T) {
	b, err := record.Marshal(manifestVersion, manifestRecord{MediaType: "application/vnd.oci.image.manifest.v1+json", ArtifactType: "application/x",
		Annotations: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "manifest.v1.json", b)
}

// Replicas that start at once on an empty database all start, and the tables are made once.
func TestOpenAtOnce(t *testing.T) {
	url := server.Database(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			s, err := Open(t.Context(), Options{URL: url, Patience: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.PutLink(t.Context(), metadata.Link{Repository: "a", Digest: content.SHA256.Of(nil)}); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := open(t, url)
	defer s.Close()
	var n, version int
	if err := s.pool.QueryRow(t.Context(), "select count(*), max(version) from schema_version").Scan(&n, &version); err != nil || n != len(migrations) || version != n {
		t.Errorf("%d versions, the last one is %d, %v", n, version, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	url := server.Database(t)
	s := open(t, url)
	if _, err := s.pool.Exec(t.Context(), "insert into schema_version values (99)"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{URL: url}); !errors.Is(err, errs.Precondition) {
		t.Errorf("a database of a newer release: %v", err)
	}
	if _, err := Open(t.Context(), Options{URL: "postgres://u:secret@%%/"}); !errors.Is(err, errs.Invalid) || err.Error() == "" {
		t.Errorf("an address that is not valid: %v", err)
	}
	if _, err := Open(t.Context(), Options{URL: "postgres:///none?host=" + t.TempDir(), Patience: time.Millisecond}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a database that does not answer: %v", err)
	}
}

// What one replica touches, locks, sweeps or holds is so for another one.
func TestReplicas(t *testing.T) {
	url := server.Database(t)
	one, two := open(t, url), open(t, url)
	defer one.Close()
	defer two.Close()
	ctx, d := t.Context(), content.SHA256.Of(nil)
	if err := one.PutLink(ctx, metadata.Link{Repository: "a", Digest: d}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	before, err := two.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Touch(ctx, "a", d); err != nil {
		t.Fatal(err)
	}
	if done, err := two.CollectLink(ctx, "a", d, before); err != nil || done {
		t.Errorf("a link that another replica touched: %v, %v", done, err)
	}
	_, release, err := one.Sweep(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := two.Sweep(ctx); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second collection: %v", err)
	}
	release()
	h, err := one.CreateUpload(ctx, "id", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := two.HoldUpload(ctx, "id"); !errors.Is(err, errs.Conflict) {
		t.Errorf("an upload that another replica holds: %v", err)
	}
	if err := h.Release(ctx, []byte("y")); err != nil {
		t.Fatal(err)
	}
	state, h2, err := two.HoldUpload(ctx, "id")
	if err != nil || string(state) != "y" {
		t.Fatalf("state %q, %v", state, err)
	}
	if err := h.Save(ctx, nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("a change by who does not hold it any more: %v", err)
	}
	if err := h2.Delete(ctx); err != nil {
		t.Error(err)
	}
	// Eight clients of two replicas share one lock.
	var wg sync.WaitGroup
	var inside atomic.Int64 // the race detector does not know about locks of a database
	for i := range 8 {
		wg.Go(func() {
			s := []*Store{one, two}[i%2]
			for range 4 {
				_, release, err := s.Lock(ctx, d)
				if err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two hold one lock")
				}
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				release()
			}
		})
	}
	wg.Wait()
}

// A link is refused when its lock was lost meanwhile, and the lock tells its holder.
func TestLostLock(t *testing.T) {
	s := open(t, server.Database(t))
	defer s.Close()
	d := content.SHA256.Of(nil)
	held, release, err := s.Lock(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := s.PutLink(held, metadata.Link{Repository: "a", Digest: d}); err != nil {
		t.Errorf("with the lock: %v", err)
	}
	if _, err := s.pool.Exec(t.Context(), "delete from leases"); err != nil {
		t.Fatal(err)
	}
	if err := s.PutLink(t.Context(), metadata.Link{Repository: "a", Digest: d}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("without the lock: %v", err)
	}
	select {
	case <-held.Done():
		if !errors.Is(context.Cause(held), errs.Unavailable) {
			t.Errorf("cause: %v", context.Cause(held))
		}
	case <-time.After(4 * renewEvery):
		t.Error("the holder is not told")
	}
}

// Clients of a database that is restarted wait for it; nothing that was acknowledged is lost, and a tag that must be absent is made
// once.
func TestRestart(t *testing.T) {
	s := open(t, server.Database(t))
	defer s.Close()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	made := make([]int, 4)
	for i := range made {
		wg.Go(func() {
			for ctx.Err() == nil {
				d := content.SHA256.Of([]byte{byte(i), byte(made[i]), byte(made[i] >> 8)})
				if err := s.PutLink(t.Context(), metadata.Link{Repository: "a", Digest: d}); err != nil {
					t.Errorf("writer %d: %v", i, err)
					return
				}
				if _, err := s.Link(t.Context(), "a", d); err != nil {
					t.Errorf("reader %d: %v", i, err)
				}
				made[i]++
			}
		})
	}
	for _, end := range []func() error{server.Shutdown, server.Kill} {
		time.Sleep(100 * time.Millisecond)
		if err := errors.Join(end(), server.Run()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	stop()
	wg.Wait()
	links, err := s.Links(t.Context(), metadata.Link{}, 1_000_000)
	total := 0
	for _, n := range made {
		total += n
	}
	if err != nil || len(links) != total || total == 0 {
		t.Errorf("%d links of %d, %v", len(links), total, err)
	}
}

// A change that must not be made twice is reported when it is not known whether it was made.
func TestUnknownOutcome(t *testing.T) {
	s := open(t, server.Database(t))
	defer s.Close()
	lost := errors.New("connection reset")
	for again, want := range map[repeat]int{never: 1, harmless: 2, removal: 2} {
		n := 0
		err := s.persist(t.Context(), again, func(context.Context) (bool, error) {
			if n++; n == 1 {
				return true, lost
			}
			if again == removal {
				return false, unknownTag("a", "t")
			}
			return false, nil
		})
		if n != want || (err == nil) != (want > 1) || err != nil && !errors.Is(err, errs.Unavailable) {
			t.Errorf("repeat %d: %d attempts, %v", again, n, err)
		}
	}
	if err := classify(pgx.ErrTxClosed); !errors.Is(err, errs.Unavailable) {
		t.Errorf("%v", err)
	}
}
