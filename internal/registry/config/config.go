// Package config reads the settings of the registry: flags, variables of the environment, and a file of YAML.
//
// Invariants: a flag wins over a variable, a variable over the file, and the file over the default. Keys of the reference registry's
// file that mean the same are understood; one that means nothing here is told in a warning, and any other unknown key is an error,
// because a registry that ignores it may be open where its owner thinks it closed.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/blobs/s3"
	"ply/internal/registry/gc"
	"ply/internal/registry/notify"
	"ply/internal/registry/oidc"
	"ply/internal/registry/server"
	"ply/internal/registry/trace"
)

// Config has the settings.
type Config struct {
	Addr, Root, URL   string
	Database          string
	S3                s3.Options
	Redirect          bool
	TLSCert, TLSKey   string
	TLSHosts          []string
	Drain, Stall      time.Duration
	MetricsAddr       string
	Required, Basic   bool
	Htpasswd          string
	SignIn            server.SignIn
	Audit             server.Audit
	ReadOnly          bool
	NoDelete, Missing bool
	NoPages           bool
	Collect           gc.Schedule
	Untagged          bool
	Proxy             server.Proxy
	Replicate         server.Replicate
	Webhooks          []notify.Endpoint
	Policy            server.Policy
	WebhookActions    []string
	Traces            string
	LogLevel          string
	LogFormat         string
	NoAccessLog       bool

	PrintVersion bool
}

// Defaults returns the settings of a registry that is told nothing.
func Defaults() *Config {
	return &Config{
		Addr: ":5000", Root: DefaultRoot, Drain: 30 * time.Second, Stall: time.Minute,
		Collect: gc.Schedule{Interval: time.Hour, Grace: 2 * time.Hour, Idle: 7 * 24 * time.Hour},
		SignIn:  server.SignIn{Options: oidc.Options{NameClaim: "preferred_username", GroupsClaim: "groups"}, GroupsAge: 7 * 24 * time.Hour},
		Audit:   server.Audit{Max: 100_000, Age: 365 * 24 * time.Hour},
		Proxy:   server.Proxy{Fresh: 5 * time.Minute}, Replicate: server.Replicate{Interval: time.Hour}, Policy: server.Policy{Interval: 24 * time.Hour},
		LogLevel: "info", LogFormat: "text",
	}
}

// DefaultRoot is where the registry keeps everything unless it is told otherwise.
const DefaultRoot = "/var/lib/ply-registry"

// DefaultFile is read when no other file is named and it exists.
const DefaultFile = "/etc/ply-registry/config.yml"

const (
	envPrefix = "PLY_REGISTRY_"
	maxFile   = 1 << 20
)

func (s setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))
}

// referenceEnv returns the variable by which the reference registry overrides a key of its file.
func referenceEnv(key string) string {
	return "REGISTRY_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Load reads the settings. It returns warnings about keys that mean nothing.
func Load(flags *pflag.FlagSet, args, environ []string) (*Config, []string, error) {
	given := *Defaults() // what flags say, above the defaults
	for _, s := range settings {
		f := flags.VarPF(s.isSet(&given), s.flag, s.short, s.doc)
		if f.Value.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
	known := placesOf(environ)
	file := flags.String("config", "", "file of settings; by default "+strings.Join(known.files, ", ")+" where it exists")
	version := flags.BoolP("version", "v", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return nil, nil, err
	}
	c := Defaults()
	c.Root, c.PrintVersion = known.root(), *version
	switch rest := flags.Args(); {
	case len(rest) == 1 && *file == "":
		*file = rest[0]
	case len(rest) > 0:
		return nil, nil, errs.New(errs.Invalid, "unexpected argument %q", rest[len(rest)-1])
	}
	warnings, err := c.readFile(known.file(*file))
	if err != nil {
		return nil, nil, err
	}
	if err := c.readEnvironment(environ); err != nil {
		return nil, nil, err
	}
	for _, s := range settings {
		if flags.Changed(s.flag) {
			v := s.isSet(c)
			if l, ok := v.(*list); ok {
				*l = nil
			}
			if err := v.Set(s.isSet(&given).String()); err != nil {
				return nil, nil, err
			}
		}
	}
	return c, warnings, c.validate()
}

func (c *Config) readEnvironment(environ []string) error {
	vars := map[string]string{}
	for _, e := range environ {
		k, v, _ := strings.Cut(e, "=")
		vars[k] = v
	}
	set := func(name string, v value) error {
		s, ok := vars[name]
		if !ok {
			return nil
		}
		if l, ok := v.(*list); ok {
			*l = nil
		}
		if err := v.Set(s); err != nil {
			return errs.New(errs.Invalid, "%s: %w", name, err)
		}
		return nil
	}
	for key, v := range aliases {
		if err := set(referenceEnv(key), v(c)); err != nil {
			return err
		}
	}
	for _, s := range settings {
		for _, key := range s.keys {
			if err := set(referenceEnv(key), s.isSet(c)); err != nil {
				return err
			}
		}
		if err := set(s.env(), s.isSet(c)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) readFile(name string, optional bool) ([]string, error) {
	b, err := durable.ReadFile(durable.OS, name, maxFile)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	warnings, err := c.parse(b)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", name, err)
	}
	for i, w := range warnings {
		warnings[i] = name + ": " + w
	}
	return warnings, nil
}

// parse reads a file.
func (c *Config) parse(data []byte) ([]string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	values := map[string]*yaml.Node{}
	if err := flatten("", doc.Content[0], values); err != nil {
		return nil, err
	}
	known := maps.Clone(aliases)
	for _, s := range settings {
		for _, k := range s.keys {
			known[k] = s.isSet
		}
	}
	var warnings []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		n := values[key]
		if v, ok := known[key]; ok {
			if err := setNode(v(c), n); err != nil {
				return nil, errs.New(errs.Invalid, "line %d: %s: %w", n.Line, key, err)
			}
			continue
		}
		why, ok := ignored[key]
		for prefix, w := range ignored {
			if strings.HasSuffix(prefix, ".") && strings.HasPrefix(key+".", prefix) {
				why, ok = w, true
			}
		}
		if !ok {
			return nil, errs.New(errs.Invalid, "line %d: the key %s is not supported", n.Line, key).WithHint("See docs/registry.md for the keys that are.")
		}
		if why != "" {
			warnings = append(warnings, fmt.Sprintf("line %d: %s is ignored: %s", n.Line, key, why))
		}
	}
	return warnings, nil
}

func setNode(v value, n *yaml.Node) error {
	if own, ok := v.(interface{ SetNode(*yaml.Node) error }); ok && n.Kind == yaml.SequenceNode {
		return own.SetNode(n)
	}
	if l, ok := v.(*list); ok && n.Kind == yaml.SequenceNode {
		*l = nil
		for _, item := range n.Content {
			if err := l.Set(item.Value); err != nil {
				return err
			}
		}
		return nil
	}
	if n.Kind != yaml.ScalarNode {
		return errs.New(errs.Invalid, "want a %s", v.Type())
	}
	return v.Set(n.Value)
}

const maxDepth = 16

// flatten collects the values of a document by the path of their keys.
func flatten(prefix string, n *yaml.Node, values map[string]*yaml.Node) error {
	if strings.Count(prefix, ".") > maxDepth {
		return errs.New(errs.Invalid, "line %d: too deep", n.Line)
	}
	if n.Kind == yaml.AliasNode {
		return errs.New(errs.Invalid, "line %d: aliases are not supported", n.Line)
	}
	if n.Kind != yaml.MappingNode {
		if prefix == "" {
			return errs.New(errs.Invalid, "line %d: want keys and values", n.Line)
		}
		if n.Kind == yaml.ScalarNode && n.Tag == "!!null" { // a key without a value
			return nil
		}
		values[strings.TrimSuffix(prefix, ".")] = n
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if err := flatten(prefix+strings.ToLower(n.Content[i].Value)+".", n.Content[i+1], values); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validate() error {
	for name, addr := range map[string]string{"addr": c.Addr, "metrics-addr": c.MetricsAddr} {
		if _, _, err := net.SplitHostPort(addr); err != nil && (addr != "" || name == "addr") {
			return errs.New(errs.Invalid, "%s: %w", name, err)
		}
	}
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
			return errs.New(errs.Invalid, "url: %q is not an address such as https://registry.example.com", c.URL)
		}
	}
	switch {
	case c.Root == "":
		return errs.New(errs.Invalid, "root: is empty")
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errs.New(errs.Invalid, "tls-cert and tls-key go together")
	case c.TLSCert != "" && len(c.TLSHosts) > 0:
		return errs.New(errs.Invalid, "tls-cert and tls-self-signed exclude each other")
	case c.Collect.Interval > 0 && c.Collect.Grace < time.Minute:
		return errs.New(errs.Invalid, "gc-grace: %v is less than a minute, in which clients may not have finished a push", c.Collect.Grace)
	}
	if c.Traces != "" {
		if _, err := trace.Endpoint(c.Traces); err != nil {
			return errs.New(errs.Invalid, "traces: %w", err)
		}
	}
	if err := c.validateS3(); err != nil {
		return err
	}
	if err := c.validateSignIn(); err != nil {
		return err
	}
	_, err := c.Logger(io.Discard)
	return errors.Join(err, c.Proxy.Validate(), c.Replicate.Validate(), c.webhooks(nil), c.Policy.Validate())
}

func (c *Config) validateSignIn() error {
	if c.SignIn.Issuer == "" {
		if c.SignIn.ClientID != "" || c.SignIn.ClientSecret != "" {
			return errs.New(errs.Invalid, "oidc-issuer: is missing")
		}
		return nil
	}
	if c.URL == "" {
		return errs.New(errs.Invalid, "oidc-issuer needs url, to which browsers come back")
	}
	return c.SignIn.Validate()
}

func (c *Config) validateS3() error {
	switch {
	case c.S3.Bucket == "" && (c.S3 != s3.Options{} || c.Redirect):
		return errs.New(errs.Invalid, "s3-bucket: is missing")
	case c.S3.Bucket == "":
		return nil
	case c.S3.Endpoint == "" && c.S3.Region == "":
		return errs.New(errs.Invalid, "s3-bucket needs s3-endpoint or s3-region")
	case (c.S3.AccessKey == "") != (c.S3.SecretKey == ""):
		return errs.New(errs.Invalid, "s3-access-key and s3-secret-key go together")
	case c.S3.Endpoint == "":
		c.S3.Endpoint = "https://s3." + c.S3.Region + ".amazonaws.com"
	}
	return nil
}

// webhooks adds the web servers that are told of events to a list.
func (c *Config) webhooks(to *[]notify.Endpoint) error {
	for _, e := range c.Webhooks {
		if len(e.Actions) == 0 {
			e.Actions = c.WebhookActions
		}
		if err := e.Validate(); err != nil {
			return err
		}
		if to != nil {
			*to = append(*to, e)
		}
	}
	return nil
}

// Logger returns a logger that writes to w.
func (c *Config) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, errs.New(errs.Invalid, "log-level: %q is none of debug, info, warn and error", c.LogLevel)
	}
	o := &slog.HandlerOptions{Level: level}
	switch c.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json", "logstash":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, errs.New(errs.Invalid, "log-format: %q is neither text nor json", c.LogFormat)
}

// Server returns the options of a server with these settings.
func (c *Config) Server(log *slog.Logger) server.Options {
	o := server.Options{
		Root: c.Root, Database: c.Database, Redirect: c.Redirect, Missing: c.Missing, Log: log, AccessLog: !c.NoAccessLog, Collect: c.Collect, Untagged: c.Untagged, Stall: c.Stall,
		ReadOnly: c.ReadOnly, NoDelete: c.NoDelete, NoPages: c.NoPages, Required: c.Required, Basic: c.Basic, Htpasswd: c.Htpasswd, URL: c.URL,
		Proxy: c.Proxy, Replicate: c.Replicate, Policy: c.Policy, Traces: c.Traces, TLSCert: c.TLSCert, TLSKey: c.TLSKey, TLSHosts: c.TLSHosts,
		SignIn: c.SignIn, Audit: c.Audit,
	}
	_ = c.webhooks(&o.Webhooks) // they are valid
	if c.S3.Bucket != "" {
		o.S3 = &c.S3
	}
	return o
}

// reloaded are the settings that a reload changes.
var reloaded = []string{
	"read-only", "no-delete", "allow-missing", "stall", "proxy", "mirror", "remote-credentials", "remote-ca", "proxy-size", "proxy-fresh",
	"replicate", "replicate-interval", "replicate-deletes", "webhook", "webhook-actions", "quota", "immutable", "retention", "retention-interval",
}

// NeedRestart returns the settings that differ from those of other, and that a reload does not change.
func (c *Config) NeedRestart(other *Config) (names []string) {
	for _, s := range settings {
		if s.isSet(c).String() != s.isSet(other).String() && !slices.Contains(reloaded, s.flag) {
			names = append(names, s.flag)
		}
	}
	return names
}

// Table returns the settings as a table for the documentation.
func Table() string {
	var b strings.Builder
	b.WriteString("| flag | variable | key of the file | default | sets |\n| --- | --- | --- | --- | --- |\n")
	d := Defaults()
	for _, s := range settings {
		value := s.isSet(d).String()
		if value != "" {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | `%s` | %s | %s |\n", s.flag, s.env(), strings.Join(s.keys, "`, `"), value, s.doc)
	}
	return b.String()
}
