package config

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"go.yaml.in/yaml/v3"

	"ply/internal/errs"
	"ply/internal/registry/notify"
)

// setting is one thing that can be set: by a flag, a variable of the environment, or a key of the file.
type setting struct {
	flag  string
	short string // "" = none
	keys  []string
	doc   string
	isSet func(*Config) value
}

// value is a field of a Config, as text.
type value interface {
	Set(text string) error
	String() string
	Type() string
}

type (
	text     string
	yes      bool
	duration time.Duration
	list     []string
	size     int64
	number   int
	// inverted is a setting of the file that says the opposite of a flag.
	inverted struct{ *yes }
)

func (v *number) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 10_000_000 {
		return errs.New(errs.Invalid, "%q is not a number from 0 to 10000000", s)
	}
	*v = number(n)
	return nil
}
func (v *number) String() string { return strconv.Itoa(int(*v)) }
func (v *number) Type() string   { return "number" }

func (v *text) Set(s string) error { *v = text(s); return nil }
func (v *text) String() string     { return string(*v) }
func (v *text) Type() string       { return "string" }

func (v *yes) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errs.New(errs.Invalid, "%q is neither true nor false", s)
	}
	*v = yes(b)
	return nil
}
func (v *yes) String() string { return strconv.FormatBool(bool(*v)) }
func (v *yes) Type() string   { return "bool" }

func (v *duration) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errs.New(errs.Invalid, "%q is not a duration, such as 90s or 24h", s)
	}
	*v = duration(d)
	return nil
}

func (v *duration) String() string {
	s := time.Duration(*v).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
func (v *duration) Type() string { return "duration" }

func (v *list) Set(s string) error {
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			*v = append(*v, item)
		}
	}
	return nil
}
func (v *list) String() string { return strings.Join(*v, ",") }
func (v *list) Type() string   { return "list" }

func (v *size) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return errs.New(errs.Invalid, "%q is not a number of bytes, such as 500M or 20G", s)
	}
	*v = size(n)
	return nil
}

func (v *size) String() string {
	for i, unit := range []string{"T", "G", "M", "K"} {
		if of := int64(1) << (40 - 10*i); *v != 0 && int64(*v)%of == 0 {
			return strconv.FormatInt(int64(*v)/of, 10) + unit
		}
	}
	return strconv.FormatInt(int64(*v), 10)
}
func (v *size) Type() string { return "size" }

// endpoints are webhooks. As text they have only URLs.
type endpoints []notify.Endpoint

func (v *endpoints) Set(s string) error {
	*v = nil
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			*v = append(*v, notify.Endpoint{URL: item})
		}
	}
	return nil
}

func (v *endpoints) String() string {
	var list []string
	for _, e := range *v {
		list = append(list, e.URL)
	}
	return strings.Join(list, ",")
}
func (v *endpoints) Type() string { return "list" }

// endpointNode is an endpoint of the file. Name, timeout, threshold and backoff are read as the reference registry's file has them;
// events are retried until they are taken, whatever these say.
type endpointNode struct {
	Name      string              `yaml:"name"`
	Disabled  bool                `yaml:"disabled"`
	URL       string              `yaml:"url"`
	Headers   map[string][]string `yaml:"headers"`
	Actions   []string            `yaml:"actions"`
	Timeout   string              `yaml:"timeout"`
	Threshold int                 `yaml:"threshold"`
	Backoff   string              `yaml:"backoff"`
	Ignore    *struct {
		MediaTypes []string `yaml:"mediatypes"`
		Actions    []string `yaml:"actions"`
	} `yaml:"ignore"`
}

// SetNode reads the list of the file.
func (v *endpoints) SetNode(n *yaml.Node) error {
	raw, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var nodes []endpointNode
	if err := dec.Decode(&nodes); err != nil {
		return errs.New(errs.Invalid, "%w", err)
	}
	*v = nil
	for _, e := range nodes {
		if e.Disabled {
			continue
		}
		to := notify.Endpoint{URL: e.URL, Actions: e.Actions, Headers: map[string]string{}}
		for k, values := range e.Headers {
			to.Headers[k] = strings.Join(values, ", ")
		}
		if e.Ignore != nil {
			if len(e.Ignore.MediaTypes) > 0 {
				return errs.New(errs.Invalid, "ignore.mediatypes is not supported").WithHint("Name the actions.")
			}
			if len(to.Actions) == 0 {
				to.Actions = []string{notify.Push, notify.Pull, notify.Mount, notify.Delete}
			}
			to.Actions = slices.DeleteFunc(to.Actions, func(a string) bool { return slices.Contains(e.Ignore.Actions, a) })
		}
		*v = append(*v, to)
	}
	return nil
}

func (v inverted) Set(s string) error {
	err := v.yes.Set(s)
	*v.yes = !*v.yes
	return err
}

// settings are all settings, in the order of the table in the documentation.
var settings = []setting{
	{"addr", "", []string{"http.addr"}, "address to serve, as HOST:PORT or :PORT", func(c *Config) value { return (*text)(&c.Addr) }},
	{"root", "", []string{"storage.filesystem.rootdirectory"}, "directory of everything durable", func(c *Config) value { return (*text)(&c.Root) }},
	{"database", "", []string{"storage.database"}, "address of a PostgreSQL for metadata, users and keys, as postgres://USER:PASSWORD@HOST/NAME; by default they are files", func(c *Config) value { return (*text)(&c.Database) }},
	{"s3-bucket", "", []string{"storage.s3.bucket"}, "bucket for blobs, which exists; by default they are files", func(c *Config) value { return (*text)(&c.S3.Bucket) }},
	{"s3-endpoint", "", []string{"storage.s3.regionendpoint"}, "address of the S3 server, such as https://s3.example.com; by default Amazon's in the region", func(c *Config) value { return (*text)(&c.S3.Endpoint) }},
	{"s3-region", "", []string{"storage.s3.region"}, "region of the bucket", func(c *Config) value { return (*text)(&c.S3.Region) }},
	{"s3-prefix", "", []string{"storage.s3.rootdirectory"}, "prefix of the names of all objects", func(c *Config) value { return (*text)(&c.S3.Prefix) }},
	{"s3-access-key", "", []string{"storage.s3.accesskey"}, "key of the account at the S3 server; by default from AWS_ACCESS_KEY_ID, ~/.aws/credentials or the role of the machine", func(c *Config) value { return (*text)(&c.S3.AccessKey) }},
	{"s3-secret-key", "", []string{"storage.s3.secretkey"}, "secret of the key; better set by its variable than by its flag", func(c *Config) value { return (*text)(&c.S3.SecretKey) }},
	{"s3-path-style", "", []string{"storage.s3.forcepathstyle"}, "name the bucket in the path and not in the host", func(c *Config) value { return (*yes)(&c.S3.PathStyle) }},
	{"s3-redirect", "", []string{"storage.redirect.enabled"}, "let clients read blobs from the S3 server, by addresses that are valid for 20 minutes", func(c *Config) value { return (*yes)(&c.Redirect) }},
	{"spool", "", []string{"storage.s3.spool"}, "directory of temporary files for parts of uploads to S3; by default the system's", func(c *Config) value { return (*text)(&c.S3.Spool) }},
	{"url", "", []string{"http.host"}, "what clients reach the registry by, such as https://registry.example.com; by default what each request says", func(c *Config) value { return (*text)(&c.URL) }},
	{"tls-cert", "", []string{"http.tls.certificate"}, "file of the certificate; it is read again when it changes", func(c *Config) value { return (*text)(&c.TLSCert) }},
	{"tls-key", "", []string{"http.tls.key"}, "file of the key of the certificate", func(c *Config) value { return (*text)(&c.TLSKey) }},
	{"tls-self-signed", "", []string{"http.tls.selfsigned"}, "hosts and addresses for which the registry makes a certificate of its own, separated by commas", func(c *Config) value { return (*list)(&c.TLSHosts) }},
	{"drain", "", []string{"http.draintimeout"}, "how long requests may go on after SIGTERM", func(c *Config) value { return (*duration)(&c.Drain) }},
	{"stall", "", []string{"http.stall"}, "how long a client may send nothing in the middle of a body", func(c *Config) value { return (*duration)(&c.Stall) }},
	{"metrics-addr", "", []string{"http.debug.addr"}, "address of a second listener for /metrics, /healthz and /readyz, without a login", func(c *Config) value { return (*text)(&c.MetricsAddr) }},
	{"auth", "", []string{"auth.required"}, "callers must log in even before there is a user", func(c *Config) value { return (*yes)(&c.Required) }},
	{"auth-basic", "", []string{"auth.basic"}, "ask callers to log in by Basic, and not for tokens", func(c *Config) value { return (*yes)(&c.Basic) }},
	{"htpasswd", "", []string{"auth.htpasswd.path"}, "file of users with hashes of bcrypt, imported at each start; new ones become writers of everything", func(c *Config) value { return (*text)(&c.Htpasswd) }},
	{"oidc-issuer", "", []string{"auth.oidc.issuer"}, "address of an OpenID provider where users sign in by a browser; it closes the registry, and needs url", func(c *Config) value { return (*text)(&c.SignIn.Issuer) }},
	{"oidc-client-id", "", []string{"auth.oidc.clientid"}, "what the provider knows the registry by", func(c *Config) value { return (*text)(&c.SignIn.ClientID) }},
	{"oidc-client-secret", "", []string{"auth.oidc.clientsecret"}, "secret of the client; better set by its variable than by its flag", func(c *Config) value { return (*text)(&c.SignIn.ClientSecret) }},
	{"oidc-scopes", "", []string{"auth.oidc.scopes"}, "what is asked of the provider beside openid, separated by commas; by default profile", func(c *Config) value { return (*list)(&c.SignIn.Scopes) }},
	{"oidc-name-claim", "", []string{"auth.oidc.nameclaim"}, "claim that names a user who signs in for the first time; of an address, the part before the @", func(c *Config) value { return (*text)(&c.SignIn.NameClaim) }},
	{"oidc-groups-claim", "", []string{"auth.oidc.groupsclaim"}, "claim that has the groups of a user", func(c *Config) value { return (*text)(&c.SignIn.GroupsClaim) }},
	{"oidc-groups-age", "", []string{"auth.oidc.groupsage"}, "how long the groups of the provider count after a sign-in", func(c *Config) value { return (*duration)(&c.SignIn.GroupsAge) }},
	{"oidc-no-create", "", []string{"auth.oidc.nocreate"}, "only users that were linked to the provider sign in; others do not become users", func(c *Config) value { return (*yes)(&c.SignIn.NoCreate) }},
	{"audit-max", "", []string{"audit.max"}, "entries of the audit log that are kept; 0 = there is none", func(c *Config) value { return (*number)(&c.Audit.Max) }},
	{"audit-age", "", []string{"audit.age"}, "how long an entry of the audit log is kept; 0 = any time", func(c *Config) value { return (*duration)(&c.Audit.Age) }},
	{"audit-pulls", "", []string{"audit.pulls"}, "pulls are in the audit log, too", func(c *Config) value { return (*yes)(&c.Audit.Pulls) }},
	{"read-only", "", []string{"storage.maintenance.readonly.enabled"}, "nothing can be changed", func(c *Config) value { return (*yes)(&c.ReadOnly) }},
	{"no-pages", "", []string{"pages.disabled"}, "serve no pages for people with a browser", func(c *Config) value { return (*yes)(&c.NoPages) }},
	{"no-delete", "", []string{"storage.delete.disabled"}, "clients cannot delete", func(c *Config) value { return (*yes)(&c.NoDelete) }},
	{"allow-missing", "", []string{"validation.missing"}, "accept manifests that refer to blobs or manifests that are not in their repository", func(c *Config) value { return (*yes)(&c.Missing) }},
	{"gc-interval", "", []string{"gc.interval"}, "time between two collections; 0 = never", func(c *Config) value { return (*duration)(&c.Collect.Interval) }},
	{"gc-grace", "", []string{"gc.grace"}, "how long an object that nothing needs is kept", func(c *Config) value { return (*duration)(&c.Collect.Grace) }},
	{"gc-untagged", "", []string{"gc.untagged"}, "collect manifests that no tag leads to", func(c *Config) value { return (*yes)(&c.Untagged) }},
	{"upload-age", "", []string{"storage.maintenance.uploadpurging.age"}, "how long an upload that no one uses is kept", func(c *Config) value { return (*duration)(&c.Collect.Idle) }},
	{"proxy", "", []string{"proxy.upstreams"}, "registries that are copied when clients ask, as docker.io or PREFIX=URL, separated by commas", func(c *Config) value { return (*list)(&c.Proxy.Upstreams) }},
	{"mirror", "", []string{"proxy.remoteurl"}, "registry that also serves the repositories which are not here, as registry-mirrors of an engine need it: a prefix of proxy, or a URL", func(c *Config) value { return (*text)(&c.Proxy.Mirror) }},
	{"remote-credentials", "", []string{"remote.credentials"}, "file of the accounts at other registries, in the form of docker's config.json", func(c *Config) value { return (*text)(&c.Proxy.Credentials) }},
	{"remote-ca", "", []string{"remote.ca"}, "file of certificates that other registries may have, beside those of the system", func(c *Config) value { return (*text)(&c.Proxy.CA) }},
	{"proxy-size", "", []string{"proxy.size"}, "bytes of copies to keep; what was not used for longest goes first; 0 = no bound", func(c *Config) value { return (*size)(&c.Proxy.Size) }},
	{"proxy-fresh", "", []string{"proxy.fresh"}, "how long a tag of a copy is served without asking its registry", func(c *Config) value { return (*duration)(&c.Proxy.Fresh) }},
	{"replicate", "", []string{"replication.rules"}, "repositories to copy to other registries, as PATTERN=URL, separated by commas; the path of the URL goes before their names", func(c *Config) value { return (*list)(&c.Replicate.Rules) }},
	{"replicate-interval", "", []string{"replication.interval"}, "time between two comparisons with the other registries, which find what events have missed; 0 = never", func(c *Config) value { return (*duration)(&c.Replicate.Interval) }},
	{"replicate-deletes", "", []string{"replication.deletes"}, "tags and manifests that are deleted here are deleted there", func(c *Config) value { return (*yes)(&c.Replicate.Deletes) }},
	{"webhook", "", []string{"notifications.endpoints"}, "web servers that are told of events in Docker's format, by their URLs; in the file also as a list of url, headers, actions and disabled", func(c *Config) value { return (*endpoints)(&c.Webhooks) }},
	{"webhook-actions", "", []string{"notifications.actions"}, "which of push, pull, mount and delete web servers are told of that have no actions of their own", func(c *Config) value { return (*list)(&c.WebhookActions) }},
	{"quota", "", []string{"quota.rules"}, "bytes that repositories may have together, as PATTERN=BYTES such as team/**=10G, separated by commas", func(c *Config) value { return (*list)(&c.Policy.Quotas) }},
	{"immutable", "", []string{"immutable.tags"}, "tags that may neither move nor be deleted by clients, as PATTERN or PATTERN:TAGS such as team/**:v*", func(c *Config) value { return (*list)(&c.Policy.Immutable) }},
	{"retention", "", []string{"retention.rules"}, "tags that are kept, as PATTERN:TAGS=KEEP/DAYSd such as team/**:pr-*=10/30d: the newest, and those of the last days; the first rule that matches a tag decides", func(c *Config) value { return (*list)(&c.Policy.Retention) }},
	{"retention-interval", "", []string{"retention.interval"}, "time between two removals of the tags that are not kept; 0 = only by ply-registry retention", func(c *Config) value { return (*duration)(&c.Policy.Interval) }},
	{"traces", "", []string{"traces.endpoint"}, "address of an OpenTelemetry collector that gets a trace of each request, such as http://127.0.0.1:4318 (OTLP over HTTP)", func(c *Config) value { return (*text)(&c.Traces) }},
	{"log-level", "", []string{"log.level"}, "debug, info, warn or error", func(c *Config) value { return (*text)(&c.LogLevel) }},
	{"log-format", "", []string{"log.formatter"}, "text or json", func(c *Config) value { return (*text)(&c.LogFormat) }},
	{"no-access-log", "", []string{"log.accesslog.disabled"}, "do not log requests", func(c *Config) value { return (*yes)(&c.NoAccessLog) }},
}

// aliases are keys of the reference registry's file that say the opposite of a setting.
var aliases = map[string]func(*Config) value{
	"storage.redirect.disable": func(c *Config) value { return inverted{(*yes)(&c.Redirect)} },
	"storage.delete.enabled":   func(c *Config) value { return inverted{(*yes)(&c.NoDelete)} },
}

// ignored are keys of the reference registry's file that mean nothing here, with the reason. A key that ends in a dot stands for
// everything below it.
var ignored = map[string]string{
	"version":                             "",
	"http.secret":                         "uploads have no state that clients carry",
	"http.relativeurls":                   "locations are always relative",
	"http.headers.x-content-type-options": "",
	"http.net":                            "",
	"http.http2.":                         "HTTP/2 is on where there is TLS",
	"http.debug.prometheus.":              "metrics are always at /metrics",
	"auth.htpasswd.realm":                 "",
	"storage.cache.":                      "metadata needs no cache",
	"storage.filesystem.maxthreads":       "",
	"storage.tag.concurrencylimit":        "",
	"storage.maintenance.uploadpurging.":  "uploads are always purged, see upload-age",
	"proxy.ttl":                           "copies are kept by their use, see proxy-size; tags are fresh as long as proxy-fresh says",
	"health.":                             "health is always checked at /readyz",
	"log.fields.":                         "",
	"log.reportcaller":                    "",
	"validation.disabled":                 "",
	"catalog.maxentries":                  "",

	"storage.s3.secure":                      "the address of the S3 server says it",
	"storage.s3.v4auth":                      "",
	"storage.s3.chunksize":                   "parts grow with the blob",
	"storage.s3.multipartcopychunksize":      "",
	"storage.s3.multipartcopymaxconcurrency": "",
	"storage.s3.multipartcopythresholdsize":  "",
	"storage.s3.loglevel":                    "",
}
