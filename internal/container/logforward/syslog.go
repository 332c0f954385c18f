package logforward

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/RackSec/srslog"

	"ply/internal/container/logfile"
	"ply/internal/container/logremote"
	"ply/internal/container/shim"
)

// dialTime is how long a receiver may take to accept a connection.
const dialTime = 10 * time.Second

type syslogSender struct{ w *srslog.Writer }

func newSyslog(l shim.Log) (sender, error) {
	o := l.Forward.Options
	a, err := logremote.SyslogAddress(o["syslog-address"])
	if err != nil {
		return nil, err
	}
	facility, err := logremote.Facility(o["syslog-facility"])
	if err != nil {
		return nil, err
	}
	priority := srslog.Priority(facility << 3)
	var w *srslog.Writer
	switch a.Network {
	case "":
		w, err = srslog.Dial("", "", priority, l.Forward.Tag)
	case "tcp+tls":
		var c *tls.Config
		if c, err = tlsConfig(o["syslog-tls-ca-cert"], o["syslog-tls-cert"], o["syslog-tls-key"], o["syslog-tls-skip-verify"] != ""); err != nil {
			return nil, err
		}
		w, err = srslog.DialWithCustomDialer("custom", a.Address, priority, l.Forward.Tag, func(_, address string) (net.Conn, error) {
			return tls.DialWithDialer(&net.Dialer{Timeout: dialTime}, "tcp", address, c)
		})
	default:
		w, err = srslog.DialWithCustomDialer("custom", a.Address, priority, l.Forward.Tag, func(_, address string) (net.Conn, error) {
			return net.DialTimeout(a.Network, address, dialTime)
		})
	}
	if err != nil {
		return nil, err
	}
	switch o["syslog-format"] {
	case "":
		w.SetFormatter(srslog.UnixFormatter)
	case "rfc3164":
		w.SetFormatter(srslog.RFC3164Formatter)
	case "rfc5424":
		w.SetFormatter(rfc5424(time.RFC3339))
	case "rfc5424micro":
		w.SetFormatter(rfc5424("2006-01-02T15:04:05.000000Z07:00"))
	}
	if f := o["syslog-format"]; a.Network == "tcp+tls" && (f == "rfc5424" || f == "rfc5424micro") {
		w.SetFramer(srslog.RFC5425MessageLengthFramer)
	}
	return syslogSender{w}, nil
}

// rfc5424 formats with the tag as the name of the application.
func rfc5424(stamp string) srslog.Formatter {
	return func(p srslog.Priority, hostname, tag, content string) string {
		return fmt.Sprintf("<%d>1 %s %s %s %d %s - %s", p, time.Now().Format(stamp), hostname, tag, os.Getpid(), tag, content)
	}
}

// tlsConfig returns how a receiver is reached by TLS, from files of this host.
func tlsConfig(ca, cert, key string, skipVerify bool) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: skipVerify}
	if ca != "" && !skipVerify {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate", ca)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (s syslogSender) send(m logfile.Message) error {
	line := bytes.TrimSuffix(m.Line, []byte("\n"))
	if len(line) == 0 {
		return nil
	}
	if m.Stream == shim.Stderr {
		return s.w.Err(string(line))
	}
	return s.w.Info(string(line))
}

func (s syslogSender) close() error { return s.w.Close() }
