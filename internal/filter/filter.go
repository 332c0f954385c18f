// Package filter implements the filters of every list and prune: what `--filter KEY=VALUE` means.
//
// Parse reads the filters of a request. A resource declares a Table of the keys that it knows, each with the condition
// that its values make; Table.Compile checks a request against the table and returns one condition for all of its keys:
//
//	var ListFilters = filter.Table[*Volume]{
//		"name":  filter.Text(func(v *Volume) []string { return []string{v.Name} }),
//		"label": filter.Labels(func(v *Volume) map[string]string { return v.Labels }),
//	}
//
// An item must meet the condition of every key of the request. How several values of one key combine depends on
// the key: most accept an item that fits one of them, labels require all. A key without values sets no condition.
//
// Errors are errs.Invalid and have Docker's wording: "invalid filter 'moon'" for an unknown key, "invalid filter
// 'dangling=perhaps'" for a malformed value.
package filter

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
)

// Args are the filters of one request: the values of each key. A nil Args has none.
type Args map[string][]string

// Parse reads the JSON of the Engine API: {"key":["value"]}, or Docker's older {"key":{"value":true}}. An empty text has
// no filters. Keys and values are checked by Table.Compile.
func Parse(text string) (Args, error) {
	if text == "" {
		return Args{}, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, errs.New(errs.Invalid, "invalid filters %q: %w", clip(text), err)
	}
	args := make(Args, len(raw))
	for key, b := range raw {
		values, err := parseValues(b)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter '%s': want a list of strings", clip(key))
		}
		args[key] = values
	}
	return args, nil
}

func parseValues(b json.RawMessage) ([]string, error) {
	var list []string
	if err := json.Unmarshal(b, &list); err == nil {
		return list, nil
	}
	var set map[string]bool
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, err
	}
	for _, v := range slices.Sorted(maps.Keys(set)) {
		if set[v] {
			list = append(list, v)
		}
	}
	return list, nil
}

// Has reports whether one of the keys has a value.
func (a Args) Has(keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return len(a[k]) > 0 })
}

// Bool returns the truth value of a key; set is false when the key has no value. Several values must agree.
func (a Args) Bool(key string) (value, set bool, err error) {
	for i, text := range a[key] {
		b, err := strconv.ParseBool(text)
		if err != nil || i > 0 && b != value {
			return false, false, invalidValue(key, strings.Join(a[key], ","))
		}
		value, set = b, true
	}
	return value, set, nil
}

// Match reports whether an item meets a condition.
type Match[T any] func(T) bool

// Key turns the values of one key into a condition; a nil condition accepts every item. name is the key, for error texts.
type Key[T any] func(name string, values []string) (Match[T], error)

// Table lists the keys that one list or prune knows.
type Table[T any] map[string]Key[T]

// Compile returns the condition that the filters of a request make. It returns errs.Invalid for a key that is not in the
// table or a value that its key does not take.
func (t Table[T]) Compile(args Args) (Match[T], error) {
	var conditions []Match[T]
	for _, name := range slices.Sorted(maps.Keys(args)) {
		key, ok := t[name]
		if !ok {
			return nil, errs.New(errs.Invalid, "invalid filter '%s'", clip(name))
		}
		m, err := key(name, args[name])
		if err != nil {
			return nil, err
		}
		if m != nil {
			conditions = append(conditions, m)
		}
	}
	return func(item T) bool {
		for _, m := range conditions {
			if !m(item) {
				return false
			}
		}
		return true
	}, nil
}

// Any returns a key that accepts an item when fits accepts one of the values. With choices, a value outside them is refused.
func Any[T any](fits func(item T, value string) bool, choices ...string) Key[T] {
	parse := func(value string) (string, error) {
		if len(choices) > 0 && !slices.Contains(choices, value) {
			return "", errMalformed
		}
		return value, nil
	}
	return Parsed(parse, fits)
}

// errMalformed refuses a value when the error text says enough by naming key and value.
var errMalformed = errors.New("malformed value")

// Parsed returns a key whose values are read once by parse: it accepts an item when fits accepts one of them. A value that
// parse refuses is an error of the request.
func Parsed[T, V any](parse func(value string) (V, error), fits func(item T, value V) bool) Key[T] {
	return parsed(parse, func(item T, values []V) bool {
		return slices.ContainsFunc(values, func(v V) bool { return fits(item, v) })
	})
}

// Every is Parsed for an item that must fit all values.
func Every[T, V any](parse func(value string) (V, error), fits func(item T, value V) bool) Key[T] {
	return parsed(parse, func(item T, values []V) bool {
		return !slices.ContainsFunc(values, func(v V) bool { return !fits(item, v) })
	})
}

func parsed[T, V any](parse func(string) (V, error), fits func(T, []V) bool) Key[T] {
	return func(name string, texts []string) (Match[T], error) {
		values := make([]V, len(texts))
		for i, text := range texts {
			var err error
			if values[i], err = parse(text); errors.Is(err, errMalformed) {
				return nil, invalidValue(name, text)
			} else if err != nil {
				return nil, errs.New(errs.Invalid, "invalid filter '%s=%s': %w", clip(name), clip(text), err)
			}
		}
		if len(values) == 0 {
			return nil, nil
		}
		return func(item T) bool { return fits(item, values) }, nil
	}
}

// Number is the parse of Parsed and Every for whole numbers.
func Number(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errMalformed
	}
	return n, nil
}

// Exact returns a key that compares one field of an item.
func Exact[T any](field func(T) string) Key[T] {
	return Any(func(item T, value string) bool { return field(item) == value })
}

// Bool returns a key of one truth value; several values must agree.
func Bool[T any](fits func(item T, value bool) bool) Key[T] {
	return func(name string, values []string) (Match[T], error) {
		value, set, err := Args{name: values}.Bool(name)
		if err != nil || !set {
			return nil, err
		}
		return func(item T) bool { return fits(item, value) }, nil
	}
}

// ByCaller returns a key whose condition the caller of Compile applies itself, because it depends on more than the item.
// A nil valid accepts every value.
func ByCaller[T any](valid func(value string) error) Key[T] {
	return func(name string, values []string) (Match[T], error) {
		for _, v := range values {
			if valid == nil {
				break
			}
			if err := valid(v); err != nil {
				return nil, errs.New(errs.Invalid, "invalid filter '%s=%s': %w", clip(name), clip(v), err)
			}
		}
		return nil, nil
	}
}

// Until returns a key of one point in time: the item must be older than it.
func Until[T any](made func(T) time.Time) Key[T] {
	before := Before(made)
	return func(name string, values []string) (Match[T], error) {
		if len(values) > 1 {
			return nil, errs.New(errs.Invalid, "more than one %s filter specified", name)
		}
		if len(values) == 0 { // a prune must not remove everything because a time got lost
			return nil, errs.New(errs.Invalid, "invalid filter '%s': the time is missing", name)
		}
		return before(name, values)
	}
}

// Before returns a key of points in time: the item must be older than each of them.
func Before[T any](made func(T) time.Time) Key[T] {
	parse := func(value string) (time.Time, error) { return ParseTime(value, time.Now()) }
	return Every(parse, func(item T, t time.Time) bool { return made(item).Before(t) })
}

func invalidValue(name, value string) error {
	return errs.New(errs.Invalid, "invalid filter '%s=%s'", clip(name), clip(value))
}

// clip bounds what an error repeats of a request.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
