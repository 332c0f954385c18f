package logforward

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
)

type journaldSender struct {
	vars    map[string]string
	partial [3]bool // per stream: the last record did not end its line
}

func newJournald(l shim.Log) (sender, error) {
	if !journal.Enabled() {
		return nil, errors.New("journald is not enabled on this host")
	}
	f := l.Forward
	vars := map[string]string{
		"CONTAINER_ID": shortOf(f.Container.ID), "CONTAINER_ID_FULL": f.Container.ID, "CONTAINER_NAME": f.Container.Name, "CONTAINER_TAG": f.Tag,
		"IMAGE_NAME": f.Container.ImageName, "SYSLOG_IDENTIFIER": f.Tag,
	}
	for k, v := range f.Attributes {
		vars[fieldName(k)] = v
	}
	return &journaldSender{vars: vars}, nil
}

func shortOf(id string) string { return id[:min(12, len(id))] }

// fieldName returns a name that journald accepts: capitals, digits and underscores, without an underscore in front.
func fieldName(s string) string {
	n := strings.Map(func(r rune) rune {
		switch r = []rune(strings.ToUpper(string(r)))[0]; {
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, s)
	return strings.TrimLeft(n, "_")
}

func (s *journaldSender) send(m logfile.Message) error {
	line, whole := strings.CutSuffix(string(m.Line), "\n")
	if line == "" && !s.partial[m.Stream] {
		return nil
	}
	vars := s.vars
	if !whole || s.partial[m.Stream] {
		vars = map[string]string{}
		for k, v := range s.vars {
			vars[k] = v
		}
		if !whole {
			vars["CONTAINER_PARTIAL_MESSAGE"] = "true"
		}
		vars["CONTAINER_PARTIAL_LAST"] = strconv.FormatBool(whole)
	}
	s.partial[m.Stream] = !whole
	s.vars["SYSLOG_TIMESTAMP"] = m.Time.UTC().Format(time.RFC3339Nano)
	vars["SYSLOG_TIMESTAMP"] = s.vars["SYSLOG_TIMESTAMP"]
	priority := journal.PriInfo
	if m.Stream == shim.Stderr {
		priority = journal.PriErr
	}
	return journal.Send(line, priority, vars)
}

func (s *journaldSender) close() error { return nil }
