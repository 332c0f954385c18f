package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"sort"
	"strings"

	"ply/internal/errs"
	"ply/internal/store/layer/drivers"
)

// maxFile is the largest daemon.json that is read, in bytes.
const maxFile = 1 << 20

// ConfigFlag is the flag that names the file. When it is set, the file must exist.
const ConfigFlag = "config-file"

// field is one setting of Config.
type field struct {
	index            int
	key, flag        string
	short            string
	ignored, refused string
	live             bool
	use              string
}

// fields returns the settings that the tags of Config describe.
func fields() []field {
	t := reflect.TypeFor[Config]()
	list := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		if tag == "" {
			continue
		}
		f := field{index: i, key: tag.Get("json"), ignored: tag.Get("ignored"), refused: tag.Get("refused"), live: tag.Get("live") != "",
			use: strings.ReplaceAll(tag.Get("use"), "{drivers}", drivers.List())}
		f.flag, f.short, _ = strings.Cut(tag.Get("flag"), ",")
		list = append(list, f)
	}
	return list
}

// Load reads the file at path and applies the flags that were set: their names with all their values. A file that does not
// exist counts as empty, unless ConfigFlag is among the flags. Errors are errs.Invalid and name the key and the file.
func Load(path string, flags map[string][]string) (*Config, []Warning, error) {
	cfg := Default()
	l := loader{path: path, cfg: &cfg, fields: fields(), set: map[string]string{}}
	raw, err := readFile(path)
	if _, named := flags[ConfigFlag]; errors.Is(err, fs.ErrNotExist) && !named {
		raw, err = nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if err := l.file(raw); err != nil {
		return nil, nil, err
	}
	if err := l.flags(flags); err != nil {
		return nil, nil, err
	}
	warnings, err := cfg.check(path)
	if err != nil && len(flags) > 0 && fileIsGood(path, raw) {
		_, err = cfg.check("")
		err = invalid("command line: %w", err)
	}
	if err != nil {
		return nil, nil, err
	}
	cfg.Warnings = append(l.warnings, warnings...)
	return &cfg, cfg.Warnings, nil
}

// fileIsGood reports whether the file alone is without an error, so that one is due to the flags.
func fileIsGood(path string, raw []byte) bool {
	cfg := Default()
	l := loader{path: path, cfg: &cfg, fields: fields(), set: map[string]string{}}
	if l.file(raw) != nil {
		return false
	}
	_, err := cfg.check(path)
	return err == nil
}

func readFile(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", path, err)
	}
	defer func() { _ = f.Close() }() // only read from
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, invalid("%s: larger than %d MiB: is this the right file?", path, maxFile>>20)
	}
	return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")), nil
}

// loader collects settings. set holds the keys of the file, with their values as text.
type loader struct {
	path     string
	cfg      *Config
	fields   []field
	set      map[string]string
	warnings []Warning
}

func (l *loader) warn(key, format string, args ...any) {
	l.warnings = append(l.warnings, Warning{key, l.path + ": " + fmt.Sprintf(format, args...)})
}

func (l *loader) byKey(key string) *field {
	for i := range l.fields {
		if l.fields[i].key != "" && l.fields[i].key == key {
			return &l.fields[i]
		}
	}
	return nil
}

// file applies the settings of the file. Misspelt keys come last, so that a correctly spelt key wins.
func (l *loader) file(raw []byte) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	keys, values, err := object(raw)
	if err != nil {
		return invalid("%s: %w", l.path, err)
	}
	var unknown []string
	for _, key := range keys {
		f := l.byKey(key)
		if f == nil {
			unknown = append(unknown, key)
			continue
		}
		if err := l.assign(f, key, values[key]); err != nil {
			return err
		}
	}
	for _, key := range unknown {
		if err := l.guess(key, values[key]); err != nil {
			return err
		}
	}
	return nil
}

// assign sets a known key, warns when it has no effect, and refuses it when it cannot be supported.
func (l *loader) assign(f *field, key string, raw json.RawMessage) error {
	if err := l.decode(f, raw); err != nil {
		return invalid("%s: %s: %w", l.path, key, err)
	}
	l.set[f.key] = compact(raw)
	value := reflect.ValueOf(l.cfg).Elem().Field(f.index)
	switch {
	case f.refused != "" && !value.IsZero() && (value.Kind() != reflect.Slice || value.Len() > 0):
		return invalid("%s: %s: not supported: %s", l.path, key, f.refused)
	case f.ignored != "":
		l.warn(f.key, "%s: has no effect: %s", key, f.ignored)
	}
	return nil
}

// decode decodes a value into its field. null keeps the default. A value replaces the default as a whole.
func (l *loader) decode(f *field, raw json.RawMessage) error {
	if string(bytes.TrimSpace(raw)) == "null" {
		return nil
	}
	value := reflect.ValueOf(l.cfg).Elem().Field(f.index)
	fresh := reflect.New(value.Type())
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(fresh.Interface()); err != nil {
		return plainJSON(err, value.Type())
	}
	value.Set(fresh.Elem())
	return nil
}

// plainJSON describes a decoding error in terms of the file, without the names of Go types.
func plainJSON(err error, t reflect.Type) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	where := ""
	if wrong.Field != "" {
		where = wrong.Field + ": "
	}
	if where == "" && wrong.Type != t && (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) {
		return fmt.Errorf("want %s, an element is %s", words(t), article(wrong.Value))
	}
	return fmt.Errorf("%swant %s, got %s", where, words(wrong.Type), article(wrong.Value))
}

func words(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Int32:
		return "a whole number"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.String {
			return "a list of strings"
		}
		return "a list of objects"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return t.String()
}

func article(value string) string {
	if strings.HasPrefix(value, "number ") {
		return value
	}
	if value == "bool" {
		return "true or false"
	}
	if value == "array" {
		return "a list"
	}
	if value == "object" {
		return "an object"
	}
	return "a " + value
}

// guess handles an unknown key: when it is nearly a known one, it is taken as that one.
func (l *loader) guess(key string, raw json.RawMessage) error {
	known, distance := l.nearest(key)
	switch {
	case known == nil || distance > 3 || distance > len(key)/3:
		l.warn(key, "%s: unknown key, ignored", quoteKey(key))
	case l.set[known.key] != "":
		l.warn(key, "%s: unknown key, ignored: %s is set too", quoteKey(key), known.key)
	case distance > 2, digits(key) != digits(known.key): // a key with another digit is not misspelt: it is about the other IP version
		l.warn(key, "%s: unknown key, ignored: did you mean %s?", quoteKey(key), known.key)
	default:
		l.warn(key, "%s: did you mean %s? It is taken as that key; correct the spelling", quoteKey(key), known.key)
		return l.assign(known, key, raw)
	}
	return nil
}

// digits returns the digits of a key.
func digits(key string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, key)
}

func quoteKey(key string) string {
	if len(key) > 60 {
		key = key[:60] + "…"
	}
	return fmt.Sprintf("%q", key)
}

// nearest returns the known key that differs in the fewest typing errors, and their number. It returns nil when two keys
// are equally near, because then it is open which one was meant.
func (l *loader) nearest(key string) (*field, int) {
	if len(key) > 60 {
		return nil, 0
	}
	var best *field
	least, tie := 1<<30, false
	for i := range l.fields {
		if l.fields[i].key == "" {
			continue
		}
		switch d := distance(strings.ToLower(strings.ReplaceAll(key, "_", "-")), l.fields[i].key); {
		case d < least:
			best, least, tie = &l.fields[i], d, false
		case d == least:
			tie = true
		}
	}
	if tie {
		return nil, 0
	}
	return best, least
}

// distance returns how many letters are inserted, missing, changed or swapped.
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// object returns the keys of a JSON object, in order, and its values. A key that occurs twice is an error.
func object(raw []byte) (keys []string, values map[string]json.RawMessage, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	atLine := func(err error) error {
		off := min(dec.InputOffset(), int64(len(raw)))
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			off = min(max(syntax.Offset-1, 0), int64(len(raw)))
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("line %d: %w", 1+bytes.Count(raw[:off], []byte("\n")), err)
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, nil, atLine(err)
	}
	if tok != json.Delim('{') {
		return nil, nil, errors.New("want a JSON object of settings")
	}
	values = map[string]json.RawMessage{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, nil, atLine(err)
		}
		key, ok := tok.(string)
		if !ok {
			return nil, nil, atLine(errors.New("want a key"))
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, nil, atLine(err)
		}
		if _, twice := values[key]; twice {
			return nil, nil, fmt.Errorf("%s: set twice", quoteKey(key))
		}
		keys = append(keys, key)
		values[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, nil, atLine(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, nil, atLine(errors.New("something follows the object"))
	}
	return keys, values, nil
}

// compact returns a value as one short line, for messages.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return "?"
	}
	if b.Len() > 100 {
		return b.String()[:100] + "…"
	}
	return b.String()
}

// flags applies the flags. A key that is set in the file and as a flag is an error.
func (l *loader) flags(flags map[string][]string) error {
	names := make([]string, 0, len(flags))
	for name := range flags {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if name == ConfigFlag {
			continue
		}
		f := l.byFlag(name)
		if f == nil {
			return invalid("flag --%s: unknown", name)
		}
		if inFile, ok := l.set[f.key]; ok && f.key != "" {
			return invalid("%s: set as a flag (--%s=%s) and in %s (%s): keep one", f.key, name, strings.Join(flags[name], ","), l.path, inFile)
		}
		if err := setText(reflect.ValueOf(l.cfg).Elem().Field(f.index), flags[name]); err != nil {
			return invalid("flag --%s: %w", name, err)
		}
	}
	return l.proxyFlags(flags)
}

// proxyFlags moves the values of the three proxy flags into Proxies.
func (l *loader) proxyFlags(flags map[string][]string) error {
	for _, p := range []struct {
		flag     string
		from, to *string
	}{{"http-proxy", &l.cfg.HTTPProxy, &l.cfg.Proxies.HTTP}, {"https-proxy", &l.cfg.HTTPSProxy, &l.cfg.Proxies.HTTPS}, {"no-proxy", &l.cfg.NoProxy, &l.cfg.Proxies.No}} {
		if _, ok := flags[p.flag]; !ok {
			continue
		}
		if inFile, ok := l.set["proxies"]; ok && *p.to != "" {
			return invalid("proxies: %s is set as a flag and in %s (%s): keep one", p.flag, l.path, inFile)
		}
		*p.to, *p.from = *p.from, ""
	}
	return nil
}

func (l *loader) byFlag(name string) *field {
	for i := range l.fields {
		if f := &l.fields[i]; f.flag != "" && (f.flag == name || f.short == name) {
			return f
		}
	}
	return nil
}
