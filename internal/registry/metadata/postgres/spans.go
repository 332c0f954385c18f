package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Spans makes spans of statements for traces.
type Spans interface {
	Begin(ctx context.Context, name string) (_ context.Context, end func(error))
}

// statements makes a span of each statement, which has its first word.
type statements struct{ spans Spans }

var (
	_ pgx.QueryTracer = statements{}
	_ pgx.BatchTracer = statements{}
)

type endKey struct{}

func (s statements) begin(ctx context.Context, name string) context.Context {
	ctx, end := s.spans.Begin(ctx, "postgres "+name)
	return context.WithValue(ctx, endKey{}, end)
}

func (s statements) end(ctx context.Context, err error) {
	if end, ok := ctx.Value(endKey{}).(func(error)); ok {
		end(err)
	}
}

// TraceQueryStart begins a span.
func (s statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	word := strings.TrimSpace(data.SQL)
	if i := strings.IndexFunc(word, func(r rune) bool { return r < 'A' || r > 'z' }); i >= 0 {
		word = word[:i]
	}
	return s.begin(ctx, word)
}

// TraceQueryEnd ends it.
func (s statements) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	s.end(ctx, data.Err)
}

// TraceBatchStart begins a span of several statements at once.
func (s statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return s.begin(ctx, "batch")
}

// TraceBatchQuery says what became of one of them, which is not told.
func (s statements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd ends the span.
func (s statements) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	s.end(ctx, data.Err)
}
