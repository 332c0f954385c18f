package docker

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ply/internal/api/direct"
	"ply/internal/errs"
)

// handler answers one request. An error before the first byte is answered with a status and a JSON message. An error after
// it cuts the connection.
type handler func(*call) error

// route is one line of the table. A part of the pattern in braces matches one part of the path. {name...} matches one or
// more, because image names have slashes.
type route struct {
	method  string
	pattern string
	do      handler
}

// match returns the first route for a path without its version, or nil, and the values of the parts in braces.
func match(routes []route, method, path string) (*route, map[string]string) {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i := range routes {
		if routes[i].method != method {
			continue
		}
		if vars, ok := matchParts(strings.Split(strings.TrimPrefix(routes[i].pattern, "/"), "/"), parts); ok {
			return &routes[i], vars
		}
	}
	return nil, nil
}

func matchParts(pattern, parts []string) (map[string]string, bool) {
	var vars map[string]string
	for i, p := range pattern {
		name, isVar := strings.CutPrefix(p, "{")
		if !isVar {
			if len(parts) == 0 || parts[0] != p {
				return nil, false
			}
			parts = parts[1:]
			continue
		}
		name = strings.TrimSuffix(name, "}")
		take := 1
		if n, many := strings.CutSuffix(name, "..."); many {
			name = n
			take = len(parts) - (len(pattern) - i - 1) // the rest of the pattern takes the others
		}
		if take < 1 || take > len(parts) {
			return nil, false
		}
		value := strings.Join(parts[:take], "/")
		if value == "" || strings.HasPrefix(value, "/") || strings.HasSuffix(value, "/") || strings.Contains(value, "//") {
			return nil, false
		}
		if vars == nil {
			vars = map[string]string{}
		}
		vars[name] = value
		parts = parts[take:]
	}
	return vars, len(parts) == 0
}

// ParseAPI returns the minor version of an API version from 1.12 to the newest; "" is 1.24. The error's class is errs.Invalid.
func ParseAPI(text string) (int, error) {
	if text == "" {
		return minVersion, nil
	}
	minor, err := strconv.Atoi(strings.TrimPrefix(text, "1."))
	if err != nil || !strings.HasPrefix(text, "1.") || minor < 12 || minor > maxVersion {
		return 0, errs.New(errs.Invalid, "API version %q: want one from 1.12 to %s", clip(text), versionText(maxVersion))
	}
	return minor, nil
}

// splitVersion splits /v1.N off a path. A path without it has the newest version. One that is older than minVersion, and not
// older than oldest, is taken for minVersion.
func splitVersion(path string, oldest int) (version int, rest string, err error) {
	if strings.ContainsFunc(path, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return 0, "", errs.New(errs.Invalid, "invalid path: control characters are not allowed")
	}
	for _, part := range strings.Split(path, "/") {
		if part == ".." || part == "." {
			return 0, "", errs.New(errs.Invalid, "invalid path: . and .. are not allowed")
		}
	}
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	digits, isVersion := strings.CutPrefix(first, "v")
	if !isVersion || digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return maxVersion, path, nil
	}
	major, minor, _ := strings.Cut(digits, ".")
	version, tooNew := compareVersion(major, minor)
	switch {
	case tooNew:
		return 0, "", errs.New(errs.Invalid, "client version %s is too new. Maximum supported API version is %s", clip(digits), versionText(maxVersion))
	case version < oldest:
		return 0, "", errs.New(errs.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", clip(digits), versionText(oldest))
	}
	return max(version, minVersion), "/" + rest, nil
}

// compareVersion returns the minor version of "1.minor". It returns 0 for an older version, and tooNew for a newer one.
func compareVersion(major, minor string) (version int, tooNew bool) {
	ma, err := strconv.Atoi(major)
	if err != nil {
		return 0, len(major) > 9
	}
	mi := 0
	if minor != "" {
		if mi, err = strconv.Atoi(minor); err != nil {
			return 0, ma >= 1 && len(minor) > 9
		}
	}
	switch {
	case ma > 1 || ma == 1 && mi > maxVersion:
		return 0, true
	case ma < 1:
		return 0, false
	}
	return mi, false
}

func versionText(minor int) string { return "1." + strconv.Itoa(minor) }

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// table returns every route that is answered, the most specific one first. Each group of handlers holds the services that
// it needs.
func (s *server) table(o *Options) []route {
	var t []route
	now := func() time.Time { return s.now() }
	for _, group := range []interface{ routes(adder) }{
		systemHandlers{o.System, s.oldest, s.experimental},
		checkHandlers{o.Checker},
		importHandlers{o.Importer},
		usageHandlers{o.Images, o.Containers, o.Volumes, o.Builder, now},
		directHandlers{direct.NewServer(o.Builder, credentialsOf, messageOf)},
		historyHandlers{o.Builder},
		buildHandlers{o.Builder, s.sessions, s.kit, &jobs{byID: map[string]*job{}}},
		eventHandlers{o.Events},
		imageHandlers{o.Images, o.Containers, o.Driver},
		transferHandlers{o.Puller, o.Pusher, o.Archive, o.Registry, o.Images, o.HTTP},
		checkpointHandlers{o.Checkpoints}, // before the containers, whose removal takes any path
		containerHandlers{o.Containers, o.Checkpoints, o.Containers, o.Containers, o.Images, now},
		fileHandlers{o.Files},
		sessionHandlers{o.Sessions, o.Containers},
		volumeHandlers{o.Volumes},
		networkHandlers{o.Networks, o.Containers, o.Connector},
		absentHandlers{},
	} {
		group.routes(func(method, pattern string, do handler) { t = append(t, route{method, pattern, do}) })
	}
	return t
}

// adder adds a route to the table.
type adder func(method, pattern string, do handler)

const (
	get    = http.MethodGet
	head   = http.MethodHead
	post   = http.MethodPost
	put    = http.MethodPut
	remove = http.MethodDelete
)
