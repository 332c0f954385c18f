package logfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
	"time"

	"ply/internal/errs"
)

// maxAttributes bounds the attributes of a log, in bytes of JSON: each record repeats them.
const maxAttributes = 256 << 10

// Subject is the container of a log. Templates of tags use its fields and methods, whose names are docker's.
type Subject struct {
	ContainerID         string
	ContainerName       string // with docker's leading slash
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string
	ContainerLabels     map[string]string
	Config              map[string]string // options of the log
	LogPath             string
	DaemonName          string
	Host                string
}

// ID returns the short ID of the container; FullID returns the whole.
func (s *Subject) ID() string     { return short(s.ContainerID) }
func (s *Subject) FullID() string { return s.ContainerID }

// Name returns the name of the container.
func (s *Subject) Name() string { return strings.TrimPrefix(s.ContainerName, "/") }

// ImageID returns the first 12 characters of the image's ID, as docker; ImageFullID returns the whole.
func (s *Subject) ImageID() string     { return short(s.ContainerImageID) }
func (s *Subject) ImageFullID() string { return s.ContainerImageID }

// ImageName returns the image as the user named it.
func (s *Subject) ImageName() string { return s.ContainerImageName }

// Command returns the program with its arguments.
func (s *Subject) Command() string {
	return strings.Join(append([]string{s.ContainerEntrypoint}, s.ContainerArgs...), " ")
}

// Hostname returns the name of the host.
func (s *Subject) Hostname() string { return s.Host }

func short(id string) string { return id[:min(12, len(id))] }

// Attributes returns what the options tag, labels, labels-regex, env and env-regex add to each record of a log. Errors: errs.Invalid.
func Attributes(opts map[string]string, s *Subject) (map[string]string, error) {
	attrs := map[string]string{}
	env := map[string]string{}
	for _, e := range s.ContainerEnv {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	for _, source := range []struct {
		name, pattern string
		values        map[string]string
	}{{"labels", "labels-regex", s.ContainerLabels}, {"env", "env-regex", env}} {
		for k := range strings.SplitSeq(opts[source.name], ",") {
			if v, ok := source.values[k]; ok {
				attrs[k] = v
			}
		}
		if opts[source.pattern] == "" {
			continue
		}
		re, err := compileKeys(source.pattern, opts[source.pattern])
		if err != nil {
			return nil, err
		}
		for k, v := range source.values {
			if re.MatchString(k) {
				attrs[k] = v
			}
		}
	}
	if opts["tag"] != "" {
		tag, err := tagOf(opts["tag"], s)
		if err != nil {
			return nil, err
		}
		if tag != "" {
			attrs["tag"] = tag
		}
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	if b, err := json.Marshal(attrs); err != nil || len(b) > maxAttributes {
		return nil, errs.New(errs.Invalid, "log opts: the attributes of a record take %d bytes, more than %d", len(b), maxAttributes)
	}
	return attrs, nil
}

// CheckAttributes checks one of the options of Attributes without a container.
func CheckAttributes(key, value string) (err error) {
	switch key {
	case "labels-regex", "env-regex":
		_, err = compileKeys(key, value)
	case "tag":
		_, err = parseTag(value)
	}
	return err
}

func compileKeys(key, pattern string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(pattern)
	if err != nil || len(pattern) > 4096 {
		return nil, errs.New(errs.Invalid, "log opt %s: invalid regular expression %q", key, pattern[:min(len(pattern), 100)])
	}
	return re, nil
}

const (
	maxTagText = 512      // bytes of the template of a tag
	maxTag     = 16 << 10 // bytes of a tag, and of each value on the way to it
)

// Whoever creates containers may write templates, and the engine executes them. So a template has no loops and calls no other, and each
// function bounds its result.
func parseTag(text string) (*template.Template, error) {
	bad := func(err error) error { return errs.New(errs.Invalid, "log opt tag: %w", err) }
	if len(text) > maxTagText {
		return nil, bad(fmt.Errorf("a template of more than %d bytes", maxTagText))
	}
	t, err := template.New("log-tag").Funcs(tagFuncs()).Parse(text)
	if err != nil {
		return nil, bad(err)
	}
	if len(t.Templates()) > 1 || t.Tree != nil && t.Root != nil && !isPlain(t.Root) {
		return nil, bad(errors.New("range, template, block, define and the functions html, js, urlquery and call are not supported"))
	}
	return t, nil
}

// isPlain reports whether a part of a template has no loop, no call of another template, and no function that is not bounded.
func isPlain(n parse.Node) bool {
	all := func(list *parse.ListNode) bool {
		return list == nil || !slices.ContainsFunc(list.Nodes, func(n parse.Node) bool { return !isPlain(n) })
	}
	pipe := func(p *parse.PipeNode) bool {
		return p == nil || !slices.ContainsFunc(p.Cmds, func(c *parse.CommandNode) bool {
			return slices.ContainsFunc(c.Args, func(n parse.Node) bool { return !isPlain(n) })
		})
	}
	switch n := n.(type) {
	case *parse.ListNode:
		return all(n)
	case *parse.ActionNode:
		return pipe(n.Pipe)
	case *parse.PipeNode:
		return pipe(n)
	case *parse.IfNode:
		return pipe(n.Pipe) && all(n.List) && all(n.ElseList)
	case *parse.WithNode:
		return pipe(n.Pipe) && all(n.List) && all(n.ElseList)
	case *parse.RangeNode, *parse.TemplateNode:
		return false
	case *parse.ChainNode:
		return isPlain(n.Node)
	case *parse.IdentifierNode:
		return !slices.Contains([]string{"html", "js", "urlquery", "call"}, n.Ident)
	}
	return true
}

var errLongTag = errors.New("the value is too long")

func bounded(s string) (string, error) {
	if len(s) > maxTag {
		return "", errLongTag
	}
	return s, nil
}

// isWide reports whether a format can have a width that makes a long text: four digits, or one that is an argument.
func isWide(format string) bool {
	digits := 0
	for _, c := range format {
		if digits++; c < '0' || c > '9' {
			digits = 0
		}
		if digits == 4 || c == '*' {
			return true
		}
	}
	return false
}

// tagFuncs returns docker's functions for templates of tags, and those of the templates that make text. It is no variable, so that the shim, which does
// not call it, does not link the templates.
func tagFuncs() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			var b strings.Builder
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			if err := e.Encode(v); err != nil {
				return "", err
			}
			return bounded(strings.TrimSpace(b.String()))
		},
		"split": strings.Split,
		"join":  func(list []string, sep string) (string, error) { return bounded(strings.Join(list, sep)) },
		"title": func(s string) (string, error) { return bounded(strings.Title(s)) }, // as in docker
		"lower": func(s string) (string, error) { return bounded(strings.ToLower(s)) },
		"upper": func(s string) (string, error) { return bounded(strings.ToUpper(s)) },
		"pad": func(s string, before, after int) (string, error) {
			if s == "" || before < 0 || after < 0 || before > maxTag || after > maxTag {
				return s, nil
			}
			return bounded(strings.Repeat(" ", before) + s + strings.Repeat(" ", after))
		},
		"truncate": func(s string, n int) string { return s[:max(0, min(n, len(s)))] },
		"print":    func(v ...any) (string, error) { return bounded(fmt.Sprint(v...)) },
		"println":  func(v ...any) (string, error) { return bounded(fmt.Sprintln(v...)) },
		"printf": func(format string, v ...any) (string, error) {
			if isWide(format) || len(format) > maxTagText {
				return "", errLongTag
			}
			return bounded(fmt.Sprintf(format, v...))
		},
	}
}

// tagOf executes the template of a tag.
func tagOf(text string, s *Subject) (string, error) {
	t, err := parseTag(text)
	if err != nil {
		return "", err
	}
	var b boundedText
	if err := t.Execute(&b, s); err != nil {
		return "", errs.New(errs.Invalid, "log opt tag: %w", err)
	}
	return b.String(), nil
}

// boundedText is a text of at most maxTag bytes.
type boundedText struct{ strings.Builder }

func (b *boundedText) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxTag {
		return 0, errLongTag
	}
	return b.Builder.Write(p)
}

// Details returns the attributes of a record as `logs --details` shows them.
func (m *Message) Details() string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m.Attributes)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(url.QueryEscape(k) + "=" + url.QueryEscape(m.Attributes[k]))
	}
	return b.String()
}
