package logforward

import (
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/fluent/fluent-logger-golang/fluent"

	"ply/internal/container/logfile"
	"ply/internal/container/logremote"
	"ply/internal/container/shim"
)

type fluentdSender struct {
	w       *fluent.Fluent
	tag     string
	fixed   map[string]string
	partial [3]bool // per stream: the last record did not end its line
}

func newFluentd(l shim.Log) (sender, error) {
	o := l.Forward.Options
	a, err := logremote.FluentdAddress(o["fluentd-address"])
	if err != nil {
		return nil, err
	}
	// The values were checked when the container was created.
	flag := func(k string) bool { b, _ := strconv.ParseBool(o[k]); return b }
	span := func(k string) time.Duration { d, _ := time.ParseDuration(o[k]); return d }
	c := fluent.Config{
		FluentNetwork: a.Network, Timeout: dialTime, Async: flag("fluentd-async") || flag("fluentd-async-connect"),
		AsyncReconnectInterval: int(span("fluentd-async-reconnect-interval").Milliseconds()), SubSecondPrecision: flag("fluentd-sub-second-precision"),
		RequestAck: flag("fluentd-request-ack"), WriteTimeout: span("fluentd-write-timeout"), RetryWait: 1000, MaxRetry: 1<<31 - 1, BufferLimit: 1 << 20,
		ForceStopAsyncSend: flag("fluentd-async") || flag("fluentd-async-connect"),
	}
	if a.Network == "unix" {
		c.FluentSocketPath = a.Address
	} else {
		host, port, err := net.SplitHostPort(a.Address)
		if err != nil {
			return nil, err
		}
		c.FluentHost = host
		if c.FluentPort, err = strconv.Atoi(port); err != nil {
			return nil, err
		}
	}
	if v := o["fluentd-retry-wait"]; v != "" {
		c.RetryWait = max(1, int(span("fluentd-retry-wait").Milliseconds()))
	}
	if n, err := strconv.Atoi(o["fluentd-max-retries"]); err == nil {
		c.MaxRetry = max(n, 1)
	}
	if n, err := units.RAMInBytes(o["fluentd-buffer-limit"]); err == nil {
		c.BufferLimit = max(1, int(n/1024)) // in records; each is taken for one KiB
	}
	w, err := fluent.New(c)
	if err != nil {
		return nil, err
	}
	fixed := map[string]string{"container_id": l.Forward.Container.ID, "container_name": "/" + l.Forward.Container.Name}
	for k, v := range l.Forward.Attributes {
		fixed[k] = v
	}
	return &fluentdSender{w: w, tag: l.Forward.Tag, fixed: fixed}, nil
}

func (s *fluentdSender) send(m logfile.Message) error {
	line, whole := strings.CutSuffix(string(m.Line), "\n")
	data := map[string]string{"log": line, "source": "stdout"}
	for k, v := range s.fixed {
		data[k] = v
	}
	if m.Stream == shim.Stderr {
		data["source"] = "stderr"
	}
	if !whole || s.partial[m.Stream] {
		data["partial_message"], data["partial_last"] = "true", strconv.FormatBool(whole)
	}
	s.partial[m.Stream] = !whole
	return s.w.PostWithTime(s.tag, m.Time, data)
}

func (s *fluentdSender) close() error { return s.w.Close() }
