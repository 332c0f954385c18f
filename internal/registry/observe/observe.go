// Package observe tells operators what the registry does: a line of the access log and metrics for every request.
//
// Invariant: the wrapper of a response still lets the kernel send a file.
package observe

import (
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the metrics of one registry.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sent     prometheus.Counter
	received prometheus.Counter
	active   prometheus.Gauge

	collections *prometheus.CounterVec
	collected   *prometheus.CounterVec

	proxied    *prometheus.CounterVec
	proxyBytes *prometheus.CounterVec

	outward         *prometheus.CounterVec
	retained        *prometheus.CounterVec
	replicatedBytes prometheus.Counter
}

// New returns metrics, all of them 0.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_requests_total", Help: "Requests by route, method and status."}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ply_registry_request_seconds", Help: "Time until the last byte of the answer.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}, []string{"route", "method"}),
		sent:        prometheus.NewCounter(prometheus.CounterOpts{Name: "ply_registry_sent_bytes_total", Help: "Bytes of answers."}),
		received:    prometheus.NewCounter(prometheus.CounterOpts{Name: "ply_registry_received_bytes_total", Help: "Bytes of requests."}),
		active:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "ply_registry_requests_active", Help: "Requests that are being served."}),
		collections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_collections_total", Help: "Collections by outcome."}, []string{"outcome"}),
		collected:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_collected_total", Help: "What collections removed: uploads, manifests, links, blobs and bytes."}, []string{"kind"}),
	}
	m.proxied = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_proxy_served_total", Help: "What copies of other registries served: hit, miss, revalidated, stale or error."}, []string{"kind", "outcome"})
	m.proxyBytes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_proxy_bytes_total", Help: "Bytes of copies that were fetched and evicted."}, []string{"kind"})
	m.outward = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_outward_total", Help: "Copies to other registries (replication) and notifications (webhook) by outcome: ok, error or dropped."}, []string{"kind", "outcome"})
	m.replicatedBytes = prometheus.NewCounter(prometheus.CounterOpts{Name: "ply_registry_replicated_bytes_total", Help: "Bytes that were copied to other registries."})
	m.retained = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ply_registry_retention_total", Help: "What retention removed: tags and manifests; and its runs that failed."}, []string{"kind"})
	m.registry.MustRegister(m.proxied, m.proxyBytes, m.outward, m.replicatedBytes, m.retained)
	m.registry.MustRegister(m.requests, m.seconds, m.sent, m.received, m.active, m.collections, m.collected,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the metrics in the format of Prometheus.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Collected counts a collection.
func (m *Metrics) Collected(uploads, manifests, links, blobs int, bytes int64, failed bool) {
	outcome := "ok"
	if failed {
		outcome = "error"
	}
	m.collections.WithLabelValues(outcome).Inc()
	for kind, n := range map[string]float64{"uploads": float64(uploads), "manifests": float64(manifests), "links": float64(links), "blobs": float64(blobs), "bytes": float64(bytes)} {
		m.collected.WithLabelValues(kind).Add(n)
	}
}

// Proxied counts what a copy of another registry served.
func (m *Metrics) Proxied(kind, outcome string) { m.proxied.WithLabelValues(kind, outcome).Inc() }

// ProxyFetched counts bytes that were fetched from other registries.
func (m *Metrics) ProxyFetched(n int64) { m.proxyBytes.WithLabelValues("fetched").Add(float64(n)) }

// ProxyEvicted counts bytes of copies that were evicted.
func (m *Metrics) ProxyEvicted(n int64) { m.proxyBytes.WithLabelValues("evicted").Add(float64(n)) }

func outcome(failed bool) string {
	if failed {
		return "error"
	}
	return "ok"
}

// ReplicationTried counts a try to copy a tag or digest.
func (m *Metrics) ReplicationTried(failed bool) {
	m.outward.WithLabelValues("replication", outcome(failed)).Inc()
}

// Replicated counts bytes that were copied.
func (m *Metrics) Replicated(n int64) { m.replicatedBytes.Add(float64(n)) }

// WebhookTried counts a try to send an event.
func (m *Metrics) WebhookTried(failed bool) {
	m.outward.WithLabelValues("webhook", outcome(failed)).Inc()
}

// WebhookDropped counts an event that found its queue full.
func (m *Metrics) WebhookDropped() { m.outward.WithLabelValues("webhook", "dropped").Inc() }

// Retained counts a run of retention.
func (m *Metrics) Retained(tags, manifests int, failed bool) {
	m.retained.WithLabelValues("tags").Add(float64(tags))
	m.retained.WithLabelValues("manifests").Add(float64(manifests))
	if failed {
		m.retained.WithLabelValues("failures").Inc()
	}
}

// Gauges adds a metric with labels, whose values are read when they are asked for.
func (m *Metrics) Gauges(name, help string, labels []string, read func(set func(v float64, labels ...string))) {
	m.registry.MustRegister(&gauges{prometheus.NewDesc("ply_registry_"+name, help, labels, nil), read})
}

type gauges struct {
	desc *prometheus.Desc
	read func(set func(v float64, labels ...string))
}

func (g *gauges) Describe(to chan<- *prometheus.Desc) { to <- g.desc }

func (g *gauges) Collect(to chan<- prometheus.Metric) {
	g.read(func(v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, v, labels...)
	})
}

// Gauge adds a metric whose value is read when it is asked for.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ply_registry_" + name, Help: help}, value))
}

// Served is what became of a request.
type Served struct {
	Status         int
	Sent, Received int64
	User           string
}

// Tracer makes spans of requests.
type Tracer interface {
	// BeginRequest returns the request to serve, whose context has the span, and what ends the span.
	BeginRequest(r *http.Request, route string) (*http.Request, func(Served))
}

// Middleware counts every request, logs it when log is not nil, and makes a span of it when tracer is not nil. Route names the route of a
// request for the metrics; it must have few values. Served is told of every request; may be nil.
func (m *Metrics) Middleware(next http.Handler, log *slog.Logger, tracer Tracer, route func(*http.Request) string, served func(Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		name, method := route(r), knownMethod(r.Method)
		var traced func(Served)
		if tracer != nil {
			r, traced = tracer.BeginRequest(r, name)
		}
		m.active.Inc()
		defer m.active.Dec()
		body := &counting{ReadCloser: r.Body}
		r.Body = body
		resp := &response{ResponseWriter: w}
		next.ServeHTTP(resp, r)
		took := time.Since(begun)
		status := resp.status
		if status == 0 {
			status = http.StatusOK
		}
		m.requests.WithLabelValues(name, method, strconv.Itoa(status)).Inc()
		m.seconds.WithLabelValues(name, method).Observe(took.Seconds())
		m.sent.Add(float64(resp.bytes))
		m.received.Add(float64(body.n))
		if served != nil {
			served(Request{r, resp.user, resp.token, status})
		}
		if log != nil {
			log.Info("request", "remote", r.RemoteAddr, "user", resp.user, "method", r.Method, "path", r.URL.Path, "status", status,
				"sent", resp.bytes, "received", body.n, "dur", took, "agent", r.UserAgent())
		}
		if traced != nil {
			traced(Served{Status: status, Sent: resp.bytes, Received: body.n, User: resp.user})
		}
	})
}

// knownMethod keeps clients from making up values of a label.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
		return m
	}
	return "other"
}

type counting struct {
	io.ReadCloser
	n int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	return n, err
}

// response remembers what was answered, and to whom.
type response struct {
	http.ResponseWriter
	status int
	bytes  int64
	user   string
	token  string
}

// SetUser names the user for the log.
func (r *response) SetUser(name string) { r.user = name }

// SetToken names the personal access token of the user for the log.
func (r *response) SetToken(id string) { r.token = id }

// Request is a request that was served.
type Request struct {
	*http.Request
	User   string // "" = one who did not log in
	Token  string // ID of a personal access token; "" = none
	Status int
}

func (r *response) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// ReadFrom lets the server send a file without copying it.
func (r *response) ReadFrom(src io.Reader) (int64, error) {
	n, err := io.Copy(r.ResponseWriter, src)
	r.bytes += n
	return n, err
}

// Unwrap lets an http.ResponseController find the connection.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }
