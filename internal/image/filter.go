package image

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
)

// The filters that each command takes.
var (
	listFilters  = []string{"dangling", "label", "label!", "before", "since", "until", "reference"}
	pruneFilters = []string{"dangling", "label", "label!", "until", "unused"}
)

// filter is a parsed Filters.
type filter struct {
	dangling   *bool
	labels     []string // every one must match
	notLabels  []string // none may match
	before     *time.Time
	since      *time.Time
	until      *time.Time
	unused     *time.Time // last used before it
	references []string   // one must match
}

func (s *Service) parseFilters(c *catalog, in Filters, allowed []string) (*filter, error) {
	f := &filter{labels: in["label"], notLabels: in["label!"], references: in["reference"]}
	now := time.Now()
	for name, values := range in {
		if !slices.Contains(allowed, name) {
			return nil, errs.New(errs.Invalid, "invalid filter '%s'", clip(name)).
				WithHint("Known are %s.", strings.Join(allowed, ", "))
		}
		if err := f.parseOne(s, c, name, values, now); err != nil {
			return nil, err
		}
	}
	for _, p := range f.references {
		if _, err := path.Match(p, ""); err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter 'reference=%s': %w", clip(p), err)
		}
	}
	return f, nil
}

func (f *filter) parseOne(s *Service, c *catalog, name string, values []string, now time.Time) error {
	switch name {
	case "dangling":
		return f.parseDangling(values)
	case "before", "since":
		for _, v := range values {
			t, err := s.createdOf(v)
			if err != nil {
				return err
			}
			if name == "before" {
				f.before = &t
			} else {
				f.since = &t
			}
		}
	case "until", "unused":
		if len(values) != 1 {
			return errs.New(errs.Invalid, "more than one %s filter specified", name)
		}
		t, err := ParseTime(values[0], now)
		if err != nil {
			return errs.New(errs.Invalid, "invalid filter '%s=%s': %w", name, clip(values[0]), err)
		}
		if name == "until" {
			f.until = &t
		} else {
			f.unused = &t
		}
	}
	return nil
}

func (f *filter) parseDangling(values []string) error {
	for _, v := range values {
		b, err := strconv.ParseBool(v)
		if err != nil || f.dangling != nil && *f.dangling != b {
			return errs.New(errs.Invalid, "invalid filter 'dangling=%s'", clip(strings.Join(values, ",")))
		}
		f.dangling = &b
	}
	return nil
}

// createdOf gives the creation time of the image a before or since filter names.
func (s *Service) createdOf(ref string) (time.Time, error) {
	id, err := s.Lookup(ref)
	if err != nil {
		return time.Time{}, err
	}
	cfg, _, err := s.config(id)
	if err != nil || cfg.Created == nil {
		return time.Time{}, err
	}
	return *cfg.Created, nil
}

// wantNames decides by names alone. shown is false for an intermediate image that was not asked for.
func (f *filter) wantNames(img *Image, shown, isParent bool) bool {
	if len(img.Names)+len(img.Digests) == 0 {
		if f.dangling != nil {
			return *f.dangling && !isParent
		}
		return shown
	}
	// As in docker, a name by digest alone still counts as dangling.
	return f.dangling == nil || !*f.dangling || len(img.Names) == 0 && !isParent
}

// match decides by what the config says.
func (f *filter) match(img *Image) bool {
	created := img.Created()
	if f.before != nil && !created.Before(*f.before) ||
		f.since != nil && !created.After(*f.since) ||
		f.until != nil && !created.Before(*f.until) {
		return false
	}
	if f.unused != nil && !img.LastUsed.Before(*f.unused) {
		return false
	}
	for _, l := range f.labels {
		if !hasLabel(img.Config.Config.Labels, l) {
			return false
		}
	}
	for _, l := range f.notLabels {
		if hasLabel(img.Config.Config.Labels, l) {
			return false
		}
	}
	return true
}

func hasLabel(labels map[string]string, want string) bool {
	k, v, both := strings.Cut(want, "=")
	got, ok := labels[k]
	return ok && (!both || got == v)
}

// matching keeps the names that one of the patterns matches, with or without the tag.
func (f *filter) matching(names []oci.Reference) []oci.Reference {
	var out []oci.Reference
	for _, n := range names {
		for _, p := range f.references {
			full, _ := path.Match(p, n.Familiar())
			repo, _ := path.Match(p, n.FamiliarName())
			if full || repo {
				out = append(out, n)
				break
			}
		}
	}
	return out
}

// ParseTime reads a point in time as docker's until filter takes it: a duration back from now ("24h"), a Unix
// time with or without fraction, or a date with or without time and zone.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if sec, frac, _ := strings.Cut(s, "."); isDigits(sec) && (frac == "" || isDigits(frac)) && len(sec) > 4 {
		n, err := strconv.ParseInt(sec, 10, 64)
		if err != nil {
			return time.Time{}, err
		}
		ns, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
		return time.Unix(n, ns), err
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15",
		"2006-01-02Z07:00", "2006-01-02", "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00",
	} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.New(errs.Invalid, "not a duration, Unix time or date")
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
