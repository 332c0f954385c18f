// Package trace sends spans of requests to an OpenTelemetry collector, by OTLP over HTTP. The standard variables of the environment
// (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and others) have their meaning.
//
// Invariants: a request never waits for the collector; spans that it does not take in time are dropped. A span has no query, no header
// and no argument of a statement, because these may have secrets.
package trace

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"ply/internal/errs"
	"ply/internal/registry/observe"
	"ply/internal/version"
)

// Tracer makes spans.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	exporter *exporter
}

var _ observe.Tracer = (*Tracer)(nil)

const (
	defaultPath   = "/v1/traces"
	exportTimeout = 10 * time.Second
	closeTimeout  = 5 * time.Second
	reportEvery   = time.Minute
)

// Endpoint returns the address that spans are sent to, when the settings say text.
func Endpoint(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", errs.New(errs.Invalid, "%q is not an address such as http://127.0.0.1:4318", text)
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = defaultPath
	}
	return u.String(), nil
}

// Open returns a tracer that sends spans to an address. Failed is told, once a minute at most, that the collector does not take them. The
// caller closes the tracer.
func Open(endpoint string, failed func(error)) (*Tracer, error) {
	address, err := Endpoint(endpoint)
	if err != nil {
		return nil, err
	}
	client, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(address), otlptracehttp.WithTimeout(exportTimeout))
	if err != nil {
		return nil, errs.New(errs.Invalid, "traces: %w", err)
	}
	about, err := resource.New(context.Background(), resource.WithAttributes(
		attribute.String("service.name", "ply-registry"), attribute.String("service.version", version.Version)), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, errs.New(errs.Invalid, "traces: %w", err)
	}
	e := &exporter{SpanExporter: client, failed: failed}
	p := sdk.NewTracerProvider(sdk.WithBatcher(e), sdk.WithResource(about))
	return &Tracer{provider: p, tracer: p.Tracer("ply/registry"), exporter: e}, nil
}

// Close sends the spans that are left, and gives up after a few seconds.
func (t *Tracer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.exporter.failed(err)
	}
	return nil
}

// exporter reports failures instead of handing them to the handler of the whole process.
type exporter struct {
	sdk.SpanExporter
	failed   func(error)
	reported atomic.Int64 // Unix time, in seconds
}

// ExportSpans sends spans.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	now := time.Now().Unix()
	if last := e.reported.Load(); err != nil && now-last >= int64(reportEvery/time.Second) && e.reported.CompareAndSwap(last, now) {
		e.failed(err)
	}
	return nil
}

// BeginRequest begins the span of a request, below the span that the client names.
func (t *Tracer) BeginRequest(r *http.Request, route string) (*http.Request, func(observe.Served)) {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := t.tracer.Start(ctx, r.Method+" "+route, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", r.Method), attribute.String("http.route", route), attribute.String("url.path", r.URL.Path),
		attribute.String("client.address", r.RemoteAddr), attribute.String("user_agent.original", r.UserAgent())))
	return r.WithContext(ctx), func(s observe.Served) {
		span.SetAttributes(attribute.Int("http.response.status_code", s.Status), attribute.Int64("http.request.body.size", s.Received),
			attribute.Int64("http.response.body.size", s.Sent))
		if s.User != "" {
			span.SetAttributes(attribute.String("user.name", s.User))
		}
		if s.Status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(s.Status))
		}
		span.End()
	}
}

// Begin begins the span of an operation of a store, when it belongs to a request.
func (t *Tracer) Begin(ctx context.Context, name string) (context.Context, func(error)) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}
