package buildkit

import (
	"context"
	"maps"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"ply/internal/build/history"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
)

// maxWatched is how many builds that begin or end wait for a client that reads slowly. It misses further ones.
const maxWatched = 256

// ListenBuildHistory sends the records of builds, the oldest first, and then of those that begin and end. Filters are left to the clients: buildx
// applies them itself to whatever it gets.
func (c *control) ListenBuildHistory(r *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	h := c.s.o.Builder.History()
	if h == nil {
		return errs.New(errs.Unimplemented, "there is no history of builds")
	}
	ctx := stream.Context()
	changes := make(chan *history.Record, maxWatched)
	if !r.EarlyExit {
		h.Watch(ctx, func(rec *history.Record) {
			select {
			case changes <- rec:
			default:
			}
		})
	}
	list, err := h.List()
	if err != nil {
		return err
	}
	var wanted []*history.Record
	for _, rec := range list {
		if (r.Ref == "" || rec.ID == r.Ref) && (!r.ActiveOnly || rec.Ended.IsZero()) {
			wanted = append(wanted, rec)
		}
	}
	newestFirst := len(wanted) > 1 && wanted[0].Started.After(wanted[len(wanted)-1].Started)
	if n := int(r.Limit); n > 0 && len(wanted) > n {
		if newestFirst {
			wanted = wanted[:n]
		} else {
			wanted = wanted[len(wanted)-n:]
		}
	}
	for _, rec := range wanted {
		if err := stream.Send(c.event(ctx, rec)); err != nil {
			return err
		}
	}
	if r.EarlyExit {
		return nil
	}
	for {
		select {
		case rec := <-changes:
			if r.Ref != "" && rec.ID != r.Ref || r.ActiveOnly && !rec.Ended.IsZero() {
				continue
			}
			if err := stream.Send(c.event(ctx, rec)); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// event describes a build as BuildKit does.
func (c *control) event(ctx context.Context, r *history.Record) *controlapi.BuildHistoryEvent {
	done, cached := r.Counts()
	rec := &controlapi.BuildHistoryRecord{
		Ref: r.ID, Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, CreatedAt: timestamppb.New(r.Started), ExporterResponse: r.Answers,
		NumCachedSteps: int32(cached), NumTotalSteps: int32(len(r.Steps)), NumCompletedSteps: int32(done), NumWarnings: int32(len(r.Warnings)),
	}
	maps.Copy(rec.FrontendAttrs, r.Options)
	for k, v := range map[string]string{"target": r.Target, "filename": r.File} {
		if v != "" {
			rec.FrontendAttrs[k] = v
		}
	}
	e := &controlapi.BuildHistoryEvent{Type: controlapi.BuildHistoryEventType_STARTED, Record: rec}
	if r.Ended.IsZero() {
		return e
	}
	e.Type, rec.CompletedAt = controlapi.BuildHistoryEventType_COMPLETE, timestamppb.New(r.Ended)
	switch {
	case r.Canceled:
		rec.Error = &spb.Status{Code: int32(codes.Canceled), Message: "context canceled"} // by these words clients know it
	case r.Error != "":
		rec.Error = &spb.Status{Code: int32(codes.Unknown), Message: r.Error}
	}
	c.s.records.describe(ctx, r, rec)
	return e
}

// UpdateBuildHistory removes the record of a build.
func (c *control) UpdateBuildHistory(_ context.Context, r *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	h := c.s.o.Builder.History()
	switch {
	case h == nil:
		return nil, errs.New(errs.Unimplemented, "there is no history of builds")
	case r.Pinned:
		return nil, errs.New(errs.Unimplemented, "a build cannot be pinned in the history")
	case r.Finalize:
		return nil, errs.New(errs.Unimplemented, "builds have no OpenTelemetry trace in the history")
	case !r.Delete:
		return &controlapi.UpdateBuildHistoryResponse{}, nil // nothing is pinned
	}
	if _, err := h.Remove(r.Ref); err != nil {
		return nil, err
	}
	return &controlapi.UpdateBuildHistoryResponse{}, nil
}

// replay sends the progress of a build that is in the history.
func replay(ctx context.Context, h *history.History, r *history.Record, send func(*controlapi.StatusResponse) error) error {
	t := NewTrace()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		defer t.End()
		vertices := map[int]*ops.Vertex{}
		at := func(d time.Duration) { t.setNow(r.Started.Add(d)) }
		for i := range r.Steps {
			s := &r.Steps[i]
			vertices[i] = &ops.Vertex{Digest: s.Digest, Name: s.Name}
		}
		begun := map[int]bool{}
		begin := func(i int, v *ops.Vertex) {
			if !begun[i] {
				begun[i] = true
				t.Start(v)
			}
		}
		_, err := h.Log(ctx, r.ID, func(l *history.Line) error {
			v := vertices[l.Step]
			if v == nil {
				return nil
			}
			at(l.At)
			begin(l.Step, v)
			if len(l.Data) > 0 {
				t.Log(v, l.Stderr, l.Data)
			}
			return nil
		})
		if err != nil {
			cancel(err)
			return
		}
		for i := range r.Steps {
			s, v := &r.Steps[i], vertices[i]
			t.setNow(s.Started)
			begin(i, v)
			if !s.Done {
				continue
			}
			t.setNow(s.Started.Add(s.Took))
			o := solver.Outcome{Cached: s.Cached}
			if s.Error != "" {
				o.Err = errs.New(errs.Internal, "%s", s.Error)
			}
			t.Done(v, o)
		}
	}()
	return t.Send(ctx, send)
}
