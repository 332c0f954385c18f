// Package opts parses what users write behind flags: environment and label files, published ports, volumes, mounts,
// devices, limits, sizes. The rules and the wording of errors are docker's. Nothing here touches the engine.
package opts

import (
	"encoding/csv"
	"math/big"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/errs"
	"ply/internal/wire"
)

// List is a flag that may be given more than once. Check, if set, validates each value and may rewrite it.
type List struct {
	Values []string
	Check  func(string) (string, error)
	Kind   string // the word in the help, "list" when empty
}

// Set adds a value.
func (l *List) Set(s string) error {
	if l.Check != nil {
		v, err := l.Check(s)
		if err != nil {
			return err
		}
		s = v
	}
	l.Values = append(l.Values, s)
	return nil
}

// String returns "" for an empty list, so that the help shows no default.
func (l *List) String() string {
	if len(l.Values) == 0 {
		return ""
	}
	return strings.Join(l.Values, ",")
}

// Type is the word in the help.
func (l *List) Type() string {
	if l.Kind == "" {
		return "list"
	}
	return l.Kind
}

// Map is a flag of a key=value pair that may be given more than once. A later value of a key replaces an earlier one.
type Map struct {
	Values map[string]string
	Check  func(string) (string, error)
	Kind   string
}

// Set adds a pair; a key alone has the empty value.
func (m *Map) Set(s string) error {
	if m.Check != nil {
		v, err := m.Check(s)
		if err != nil {
			return err
		}
		s = v
	}
	k, v, _ := strings.Cut(s, "=")
	if m.Values == nil {
		m.Values = map[string]string{}
	}
	m.Values[k] = v
	return nil
}

// String shows the pairs.
func (m *Map) String() string {
	if m == nil || len(m.Values) == 0 {
		return "map[]"
	}
	return strings.Join(Pairs(m.Values), ",")
}

// Type is the word in the help.
func (m *Map) Type() string {
	if m.Kind == "" {
		return "map"
	}
	return m.Kind
}

// Pairs returns key=value strings, sorted by key.
func Pairs(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return out
}

// Bytes is a flag of a size, such as 512m. If Signed, -1 is valid too.
type Bytes struct {
	N      int64
	Signed bool
}

// Set parses a size.
func (b *Bytes) Set(s string) error {
	if b.Signed && s == "-1" {
		b.N = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil {
		return err
	}
	b.N = n
	return nil
}

// String returns the size, or "" if it is not set.
func (b *Bytes) String() string {
	if b == nil || b.N == 0 {
		return ""
	}
	return units.BytesSize(float64(b.N))
}

// Type is the word in the help.
func (*Bytes) Type() string { return "bytes" }

// CPUs is a flag of a decimal number of CPUs. The value is in billionths.
type CPUs int64

// Set parses a decimal number.
func (c *CPUs) Set(s string) error {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return errs.New(errs.Invalid, "failed to parse %v as a rational number", s)
	}
	nano := r.Mul(r, big.NewRat(1e9, 1))
	if !nano.IsInt() {
		return errs.New(errs.Invalid, "value is too precise")
	}
	*c = CPUs(nano.Num().Int64())
	return nil
}

// String returns the number, or "" if it is not set.
func (c *CPUs) String() string {
	if c == nil || *c == 0 {
		return ""
	}
	return big.NewRat(int64(*c), 1e9).FloatString(3)
}

// Type is the word in the help.
func (*CPUs) Type() string { return "decimal" }

// Filters is the flag --filter: name=value pairs. A name may have several values.
type Filters map[string]map[string]bool

// Set adds a filter.
func (f *Filters) Set(s string) error {
	if s == "" {
		return nil
	}
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		return errs.New(errs.Invalid, "bad format of filter (expected name=value)")
	}
	f.Add(strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v))
	return nil
}

// Add adds a value to a filter.
func (f *Filters) Add(key, value string) {
	if *f == nil {
		*f = Filters{}
	}
	if (*f)[key] == nil {
		(*f)[key] = map[string]bool{}
	}
	(*f)[key][value] = true
}

// String is always "".
func (*Filters) String() string { return "" }

// Type is the word in the help.
func (*Filters) Type() string { return "filter" }

// Fields splits a comma-separated line as CSV, so that values may contain quoted commas.
func Fields(s string) ([]string, error) {
	r := csv.NewReader(strings.NewReader(s))
	f, err := r.Read()
	if err != nil {
		return nil, errs.New(errs.Invalid, "%q: %w", s, err)
	}
	return f, nil
}

// Ulimits is the flag --ulimit.
type Ulimits struct{ List []*units.Ulimit }

// Set adds a limit, or replaces the one of the same name.
func (u *Ulimits) Set(s string) error {
	l, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	for i, have := range u.List {
		if have.Name == l.Name {
			u.List[i] = l
			return nil
		}
	}
	u.List = append(u.List, l)
	return nil
}

// Wire returns the limits in the form of the API.
func (u *Ulimits) Wire() []wire.Ulimit {
	out := []wire.Ulimit{}
	for _, l := range u.List {
		out = append(out, wire.Ulimit{Name: l.Name, Hard: l.Hard, Soft: l.Soft})
	}
	return out
}

// String shows the limits.
func (u *Ulimits) String() string {
	out := make([]string, 0, len(u.List))
	for _, l := range u.List {
		out = append(out, l.String())
	}
	return "[" + strings.Join(out, " ") + "]"
}

// Type is the word in the help.
func (*Ulimits) Type() string { return "ulimit" }

func parseBool(key, v string) (bool, error) {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, errs.New(errs.Invalid, "invalid value for %s: %s", key, v)
	}
	return b, nil
}
