package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// Flag describes one flag of the engine's command line to the program that parses it.
type Flag struct {
	Name, Short, Usage string
	Bool               bool // the value may be left out
	Many               bool // may be repeated
	Default            string
}

// Flags returns the flags that Load accepts, sorted by name, without ConfigFlag.
func Flags() []Flag {
	def := Default()
	v := reflect.ValueOf(def)
	var list []Flag
	for _, f := range fields() {
		if f.flag == "" {
			continue
		}
		value := v.Field(f.index)
		flag := Flag{Name: f.flag, Short: f.short, Usage: f.use, Bool: value.Kind() == reflect.Bool,
			Many: value.Kind() == reflect.Slice || value.Kind() == reflect.Map}
		switch {
		case flag.Many:
			if value.Len() > 0 && value.Kind() == reflect.Slice {
				flag.Default = fmt.Sprint(value.Index(0).Interface())
			}
		case !value.IsZero() || flag.Bool:
			flag.Default = fmt.Sprint(value.Interface())
		}
		list = append(list, flag)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// setText sets a field from the values of a flag, in the order in which they were given.
func setText(v reflect.Value, texts []string) error {
	if len(texts) == 0 {
		return fmt.Errorf("no value")
	}
	last := texts[len(texts)-1]
	switch to := v.Addr().Interface().(type) {
	case *string:
		*to = last
	case *bool:
		b, err := strconv.ParseBool(last)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", last)
		}
		*to = b
	case *int:
		n, err := strconv.Atoi(last)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", last)
		}
		*to = n
	case *Size:
		return to.parse(last)
	case *[]string:
		*to = slices.Clone(texts)
	case *map[string]string:
		*to = map[string]string{}
		for _, t := range texts {
			key, value, ok := strings.Cut(t, "=")
			if !ok || key == "" {
				return fmt.Errorf("%q: want KEY=VALUE", t)
			}
			(*to)[key] = value
		}
	case *map[string]map[string]string:
		*to = map[string]map[string]string{}
		for _, t := range texts {
			driver, rest, _ := strings.Cut(t, "=")
			option, value, ok := strings.Cut(rest, "=")
			if !ok || driver == "" || option == "" {
				return fmt.Errorf("%q: want DRIVER=OPTION=VALUE", t)
			}
			if (*to)[driver] == nil {
				(*to)[driver] = map[string]string{}
			}
			(*to)[driver][option] = value
		}
	case *map[string]Ulimit:
		*to = map[string]Ulimit{}
		for _, t := range texts {
			u, err := units.ParseUlimit(t)
			if err != nil {
				return fmt.Errorf("%q: %w", t, err)
			}
			(*to)[u.Name] = Ulimit{u.Name, u.Hard, u.Soft}
		}
	case *map[string]Runtime:
		*to = map[string]Runtime{}
		for _, t := range texts {
			name, path, ok := strings.Cut(t, "=")
			if !ok || name == "" || path == "" {
				return fmt.Errorf("%q: want NAME=PATH", t)
			}
			(*to)[name] = Runtime{Path: path}
		}
	case *[]Pool:
		*to = nil
		for _, t := range texts {
			p, err := parsePool(t)
			if err != nil {
				return err
			}
			*to = append(*to, p)
		}
	default:
		return fmt.Errorf("flags of type %s are not supported", v.Type())
	}
	return nil
}

func parsePool(s string) (Pool, error) {
	var p Pool
	for _, part := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch strings.TrimSpace(key) {
		case "base":
			p.Base = value
		case "size":
			n, err := strconv.Atoi(value)
			if err != nil {
				return Pool{}, fmt.Errorf("%q: size: not a whole number", s)
			}
			p.Size = n
		default:
			return Pool{}, fmt.Errorf("%q: want base=ADDRESS/BITS,size=BITS", s)
		}
	}
	return p, nil
}

func (s *Size) parse(text string) error {
	n, err := units.RAMInBytes(text)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a size: want a number, perhaps with k, m or g", text)
	}
	*s = Size(n)
	return nil
}

// UnmarshalJSON reads a number of bytes or a text such as "64M".
func (s *Size) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var text string
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
		return s.parse(text)
	}
	var n int64
	if err := json.Unmarshal(b, &n); err != nil || n < 0 {
		return fmt.Errorf("%s is not a size: want a number of bytes or a text such as \"64M\"", b)
	}
	*s = Size(n)
	return nil
}
