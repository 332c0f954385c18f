package opts

import (
	"bufio"
	"bytes"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"ply/internal/errs"
)

// Env completes a value of -e. A name alone gets its value from this process's environment. Without one there, the name stays alone,
// which unsets the variable in the container.
func Env(s string) (string, error) {
	name, _, has := strings.Cut(s, "=")
	if name == "" {
		return "", errs.New(errs.Invalid, "invalid environment variable: %s", s)
	}
	if has {
		return s, nil
	}
	if v, ok := os.LookupEnv(name); ok {
		return name + "=" + v, nil
	}
	return s, nil
}

// Label checks -l.
func Label(s string) (string, error) {
	if strings.HasPrefix(s, "=") || s == "" {
		return "", errs.New(errs.Invalid, "invalid label '%s': empty name", s)
	}
	return s, nil
}

// EnvFiles reads --env-file files in order.
func EnvFiles(files []string) ([]string, error) {
	return keyValueFiles(files, os.LookupEnv)
}

// LabelFiles reads --label-file files in order.
func LabelFiles(files []string) ([]string, error) { return keyValueFiles(files, nil) }

func keyValueFiles(files []string, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, name := range files {
		lines, err := keyValueFile(name, lookup)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return out, nil
}

func keyValueFile(name string, lookup func(string) (string, bool)) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		b := sc.Bytes()
		if n == 1 {
			b = bytes.TrimPrefix(b, []byte{0xEF, 0xBB, 0xBF})
		}
		if !utf8.Valid(b) {
			return nil, errs.New(errs.Invalid, "invalid env file (%s): invalid utf8 bytes at line %d: %v", name, n, b)
		}
		line := strings.TrimLeftFunc(string(b), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		key, _, has := strings.Cut(line, "=")
		if strings.IndexFunc(key, unicode.IsSpace) >= 0 {
			return nil, errs.New(errs.Invalid, "invalid env file (%s): variable '%s' contains whitespaces", name, key)
		}
		if key == "" {
			return nil, errs.New(errs.Invalid, "invalid env file (%s): no variable name on line '%s'", name, line)
		}
		if !has && lookup != nil {
			v, ok := lookup(key)
			if !ok {
				continue
			}
			line = key + "=" + v
		}
		out = append(out, line)
	}
	if err := sc.Err(); err != nil {
		return nil, errs.New(errs.Invalid, "invalid env file (%s): %w", name, err)
	}
	return out, nil
}

// KeyValues returns a map of key=value strings. A key alone has the empty value.
func KeyValues(list []string) map[string]string {
	m := make(map[string]string, len(list))
	for _, s := range list {
		k, v, _ := strings.Cut(s, "=")
		m[k] = v
	}
	return m
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
