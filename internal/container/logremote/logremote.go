// Package logremote checks the options of the log drivers that send a container's output away, and fills in what they say about the
// container. The shim does not link it: it gets the result (shim.Forward).
package logremote

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
	"ply/internal/errs"
)

// remoteOptions are the options of each driver that sends the output away, with the checks of their values. A nil check accepts all.
var remoteOptions = map[string]map[string]func(string) error{
	logfile.Syslog: {
		"syslog-address": checkSyslogAddress, "syslog-facility": checkFacility, "syslog-format": oneOf("rfc3164", "rfc5424", "rfc5424micro"),
		"syslog-tls-ca-cert": nil, "syslog-tls-cert": nil, "syslog-tls-key": nil, "syslog-tls-skip-verify": nil,
	},
	logfile.Journald: {},
	logfile.Fluentd: {
		"fluentd-address": checkFluentdAddress, "fluentd-async": isBool, "fluentd-async-connect": isBool, "fluentd-async-reconnect-interval": checkReconnect,
		"fluentd-buffer-limit": isSize, "fluentd-max-retries": isCount, "fluentd-request-ack": isBool, "fluentd-retry-wait": isDuration,
		"fluentd-sub-second-precision": isBool, "fluentd-write-timeout": isDuration,
	},
	logfile.GELF: {
		"gelf-address": checkGELFAddress, "gelf-compression-level": checkLevel, "gelf-compression-type": oneOf("gzip", "zlib", "none"),
		"gelf-tcp-max-reconnect": isCount, "gelf-tcp-reconnect-delay": isCount,
	},
}

// aboutContainer are the options that say what of a container goes with its records.
var aboutContainer = []string{"tag", "labels", "labels-regex", "env", "env-regex"}

const (
	maxPiece   = 16 << 10 // bytes of a record
	maxRotated = 1000     // files
)

// maxBuffer bounds the buffer of a driver that does not block, in bytes.
const maxBuffer = 1 << 30

// Parse checks the options of a driver that sends the output away. Its records are kept in files of the format of the driver local
// too, unless cache-disabled says otherwise, so that they can be read.
func Parse(driver string, opts map[string]string) (shim.Log, error) {
	l := shim.Log{Driver: driver, MaxSize: 20_000_000, MaxFiles: 5, Compress: true, Forward: &shim.Forward{Options: map[string]string{}, Buffer: 1 << 20}}
	var err error
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		v := opts[k]
		check, own := remoteOptions[driver][k]
		switch {
		case slices.Contains(aboutContainer, k):
			if err := logfile.CheckAttributes(k, v); err != nil {
				return l, err
			}
			l.Forward.Options[k] = v
			continue
		case own:
			if check != nil {
				if err := check(v); err != nil {
					return l, errs.New(errs.Invalid, "log opt %s: %w", k, err)
				}
			}
			l.Forward.Options[k] = v
			continue
		case k == "mode":
			if l.Forward.NonBlocking = v == "non-blocking"; !l.Forward.NonBlocking && v != "blocking" && v != "" {
				return l, errs.New(errs.Invalid, "logger: logging mode not supported: %s", v)
			}
			continue
		case k == "max-buffer-size":
			l.Forward.Buffer, err = units.RAMInBytes(v)
			if err == nil && (l.Forward.Buffer < maxPiece || l.Forward.Buffer > maxBuffer) {
				err = fmt.Errorf("want from %d to %d bytes", maxPiece, maxBuffer)
			}
		case k == "cache-disabled":
			l.Forward.NoCache, err = strconv.ParseBool(v)
		case k == "cache-max-size":
			if l.MaxSize, err = units.RAMInBytes(v); err == nil && l.MaxSize <= 0 {
				err = fmt.Errorf("want more than 0")
			}
		case k == "cache-max-file":
			if l.MaxFiles, err = strconv.Atoi(v); err == nil && (l.MaxFiles < 1 || l.MaxFiles > maxRotated) {
				err = fmt.Errorf("want from 1 to %d", maxRotated)
			}
		case k == "cache-compress":
			l.Compress, err = strconv.ParseBool(v)
		default:
			return l, errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", k, driver)
		}
		if err != nil {
			return l, errs.New(errs.Invalid, "log opt %s: invalid value %q: %w", k, v, err)
		}
	}
	_, sized := opts["max-buffer-size"]
	switch o := l.Forward.Options; {
	case sized && !l.Forward.NonBlocking:
		return l, errs.New(errs.Invalid, "logger: max-buffer-size option is only supported with 'mode=non-blocking'")
	case driver == logfile.GELF && o["gelf-address"] == "":
		return l, errs.New(errs.Invalid, "gelf-address is a required parameter")
	case driver == logfile.GELF && strings.HasPrefix(o["gelf-address"], "udp") && (o["gelf-tcp-max-reconnect"] != "" || o["gelf-tcp-reconnect-delay"] != ""):
		return l, errs.New(errs.Invalid, "gelf-tcp-max-reconnect and gelf-tcp-reconnect-delay are only for TCP")
	case driver == logfile.GELF && strings.HasPrefix(o["gelf-address"], "tcp") && (o["gelf-compression-type"] != "" || o["gelf-compression-level"] != ""):
		return l, errs.New(errs.Invalid, "compression is only supported on UDP")
	}
	return l, nil
}

func oneOf(words ...string) func(string) error {
	return func(v string) error {
		if v != "" && !slices.Contains(words, v) {
			return fmt.Errorf("%q is none of %s", v, strings.Join(words, ", "))
		}
		return nil
	}
}

func isBool(v string) error { _, err := strconv.ParseBool(v); return err }

func isCount(v string) error {
	if n, err := strconv.Atoi(v); err != nil || n < 0 || n > 1<<20 {
		return fmt.Errorf("%q is no positive number", v)
	}
	return nil
}

func isSize(v string) error {
	if n, err := units.RAMInBytes(v); err != nil || n < 0 || n > maxBuffer {
		return fmt.Errorf("invalid size %q", v)
	}
	return nil
}

func isDuration(v string) error {
	if d, err := time.ParseDuration(v); err != nil || d < 0 {
		return fmt.Errorf("invalid duration %q", v)
	}
	return nil
}

func checkReconnect(v string) error {
	d, err := time.ParseDuration(v)
	if err == nil && d != 0 && (d < 100*time.Millisecond || d > 10*time.Second) {
		err = fmt.Errorf("%s is not from 100ms to 10s", v)
	}
	return err
}

func checkLevel(v string) error {
	if n, err := strconv.Atoi(v); err != nil || n < -1 || n > 9 {
		return fmt.Errorf("%q is not from -1 to 9", v)
	}
	return nil
}

// Address is where a driver sends to: a network of package net, or "tcp+tls", and an address of it.
type Address struct{ Network, Address string }

func withPort(host, port string) (string, error) {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host, nil
	}
	joined := net.JoinHostPort(strings.Trim(host, "[]"), port)
	if _, _, err := net.SplitHostPort(joined); err != nil || host == "" {
		return "", fmt.Errorf("invalid host %q", host)
	}
	return joined, nil
}

// SyslogAddress reads the option syslog-address. The zero Address is the host's own syslog.
func SyslogAddress(v string) (a Address, err error) {
	if v == "" {
		return a, nil
	}
	u, err := url.Parse(v)
	if err != nil {
		return a, err
	}
	switch u.Scheme {
	case "unix", "unixgram":
		if _, err := os.Stat(u.Path); err != nil {
			return a, err
		}
		return Address{u.Scheme, u.Path}, nil
	case "udp", "tcp", "tcp+tls":
		host, err := withPort(u.Host, "514")
		return Address{u.Scheme, host}, err
	}
	return a, fmt.Errorf("unsupported scheme: '%s'", u.Scheme)
}

func checkSyslogAddress(v string) error { _, err := SyslogAddress(v); return err }

var facilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"}

// Facility returns the number of a facility of syslog: a name or a number. "" is daemon.
func Facility(v string) (int, error) {
	if v == "" {
		v = "daemon"
	}
	if i := slices.Index(facilities, v); i >= 0 {
		return i, nil
	}
	if n, ok := strings.CutPrefix(v, "local"); ok && len(n) == 1 && n >= "0" && n <= "7" {
		return 16 + int(n[0]-'0'), nil
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 && n <= 23 {
		return n, nil
	}
	return 0, fmt.Errorf("invalid syslog facility")
}

func checkFacility(v string) error { _, err := Facility(v); return err }

// FluentdAddress reads the option fluentd-address.
func FluentdAddress(v string) (a Address, err error) {
	if v == "" {
		v = "tcp://127.0.0.1:24224"
	}
	if !strings.Contains(v, "://") {
		v = "tcp://" + v
	}
	u, err := url.Parse(v)
	if err != nil {
		return a, err
	}
	switch u.Scheme {
	case "unix":
		if strings.Trim(u.Path, "/") == "" {
			return a, fmt.Errorf("path is empty")
		}
		return Address{"unix", u.Path}, nil
	case "tcp", "tls":
		if u.Path != "" {
			return a, fmt.Errorf("should not contain a path element")
		}
		host, err := withPort(u.Host, "24224")
		return Address{u.Scheme, host}, err
	}
	return a, fmt.Errorf("unsupported scheme: %q", u.Scheme)
}

func checkFluentdAddress(v string) error { _, err := FluentdAddress(v); return err }

// GELFAddress reads the option gelf-address.
func GELFAddress(v string) (a Address, err error) {
	u, err := url.Parse(v)
	if err != nil {
		return a, err
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" {
		return a, fmt.Errorf("gelf: endpoint needs to be TCP or UDP")
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return a, fmt.Errorf("gelf: please provide gelf-address as proto://host:port")
	}
	return Address{u.Scheme, u.Host}, nil
}

func checkGELFAddress(v string) error {
	if v == "" {
		return nil
	}
	_, err := GELFAddress(v)
	return err
}

// Complete fills in the program that sends the output away, and what goes with each record.
func Complete(f *shim.Forward, program string, s *logfile.Subject) error {
	attributes, err := logfile.Attributes(f.Options, s)
	if err != nil {
		return err
	}
	f.Tag = s.ID()
	if f.Options["tag"] != "" {
		f.Tag = attributes["tag"]
		delete(attributes, "tag")
	}
	f.Program, f.Attributes = program, attributes
	f.Container = shim.LoggedContainer{
		ID: s.ContainerID, Name: s.Name(), ImageID: s.ContainerImageID, ImageName: s.ContainerImageName, Command: s.Command(), Created: s.ContainerCreated,
	}
	return nil
}

// SetPath sets the path of the files of a log, if it has files.
func SetPath(l *shim.Log, path string) {
	if l.Forward == nil || !l.Forward.NoCache {
		l.Path = path
	}
}
