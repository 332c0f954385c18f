package logforward

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/Graylog2/go-gelf/gelf"

	"ply/internal/container/logfile"
	"ply/internal/container/logremote"
	"ply/internal/container/shim"
)

type gelfSender struct {
	w     gelf.Writer
	host  string
	extra json.RawMessage
}

func newGELF(l shim.Log) (sender, error) {
	o, c := l.Forward.Options, l.Forward.Container
	a, err := logremote.GELFAddress(o["gelf-address"])
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	fields := map[string]any{
		"_container_id": c.ID, "_container_name": c.Name, "_image_id": c.ImageID, "_image_name": c.ImageName, "_command": c.Command,
		"_tag": l.Forward.Tag, "_created": c.Created,
	}
	for k, v := range l.Forward.Attributes {
		fields["_"+k] = v
	}
	extra, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	// The values were checked when the container was created.
	s := &gelfSender{host: host, extra: extra}
	if a.Network == "tcp" {
		w, err := gelf.NewTCPWriter(a.Address)
		if err != nil {
			return nil, fmt.Errorf("gelf: cannot connect to GELF endpoint: %s %w", a.Address, err)
		}
		if n, err := strconv.Atoi(o["gelf-tcp-max-reconnect"]); err == nil {
			w.MaxReconnect = n
		}
		if n, err := strconv.Atoi(o["gelf-tcp-reconnect-delay"]); err == nil {
			w.ReconnectDelay = time.Duration(n)
		}
		s.w = w
		return s, nil
	}
	w, err := gelf.NewUDPWriter(a.Address)
	if err != nil {
		return nil, fmt.Errorf("gelf: cannot connect to GELF endpoint: %s %w", a.Address, err)
	}
	w.CompressionType, w.CompressionLevel = gelf.CompressGzip, flate.BestSpeed
	switch o["gelf-compression-type"] {
	case "zlib":
		w.CompressionType = gelf.CompressZlib
	case "none":
		w.CompressionType = gelf.CompressNone
	}
	if n, err := strconv.Atoi(o["gelf-compression-level"]); err == nil {
		w.CompressionLevel = n
	}
	s.w = w
	return s, nil
}

func (s *gelfSender) send(m logfile.Message) error {
	line := bytes.TrimSuffix(m.Line, []byte("\n"))
	if len(line) == 0 {
		return nil // the protocol has no empty messages
	}
	level := int32(gelf.LOG_INFO)
	if m.Stream == shim.Stderr {
		level = gelf.LOG_ERR
	}
	return s.w.WriteMessage(&gelf.Message{
		Version: "1.1", Host: s.host, Short: string(line), TimeUnix: float64(m.Time.UnixMilli()) / 1000, Level: level, RawExtra: s.extra,
	})
}

func (s *gelfSender) close() error { return s.w.Close() }
