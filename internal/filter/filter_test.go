package filter

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
)

func TestParseReadsBothForms(t *testing.T) {
	for _, tc := range []struct {
		text string
		want Args
	}{
		{"", Args{}},
		{"{}", Args{}},
		{`{"label":["a","b=c"],"id":[]}`, Args{"label": {"a", "b=c"}, "id": {}}},
		{`{"label":{"b":true,"a":true,"off":false}}`, Args{"label": {"a", "b"}}},
		{`{"label":null}`, Args{"label": nil}},
	} {
		got, err := Parse(tc.text)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("Parse(%s) = %v, %v, want %v", tc.text, got, err, tc.want)
		}
	}
}

func TestParseRefusesOtherJSON(t *testing.T) {
	for _, text := range []string{"x", "[]", `{"label":"a"}`, `{"label":[1]}`, `{"label":{"a":"b"}}`, `"x"`} {
		_, err := Parse(text)
		if !errors.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), "invalid filter") {
			t.Errorf("Parse(%s): %v, want Invalid", text, err)
		}
	}
	if _, err := Parse(`{"` + strings.Repeat("k", 1000) + `":1}`); err == nil || len(err.Error()) > 200 {
		t.Errorf("a long key: %v, want a short error", err)
	}
}

type item struct {
	name   string
	labels map[string]string
	made   time.Time
	on     bool
}

func labelsOf(i item) map[string]string { return i.labels }

var table = Table[item]{
	"name":    Text(func(i item) []string { return []string{i.name, "/" + i.name} }),
	"is":      Exact(func(i item) string { return i.name }),
	"size":    Any(func(i item, v string) bool { return v == "short" == (len(i.name) < 3) }, "short", "long"),
	"len":     Parsed(Number, func(i item, n int) bool { return len(i.name) == n }),
	"least":   Every(Number, func(i item, n int) bool { return len(i.name) >= n }),
	"on":      Bool(func(i item, v bool) bool { return i.on == v }),
	"label":   Labels(labelsOf),
	"label!":  NotAllLabels(labelsOf),
	"nolabel": NoLabel(labelsOf),
	"until":   Until(func(i item) time.Time { return i.made }),
	"before":  Before(func(i item) time.Time { return i.made }),
	"glob":    ByCaller[item](ValidGlob),
	"free":    ByCaller[item](nil),
}

func TestTheConditionsOfEveryKey(t *testing.T) {
	now := time.Now()
	items := []item{
		{name: "a", labels: map[string]string{"x": "1", "y": ""}, made: now.Add(-48 * time.Hour), on: true},
		{name: "bb", labels: map[string]string{"x": "2"}, made: now.Add(-time.Hour)},
		{name: "c+c", made: now},
	}
	for _, tc := range []struct {
		args Args
		want string
	}{
		{nil, "a bb c+c"},
		{Args{"name": {}, "is": nil, "size": nil, "len": nil, "on": nil, "label": nil, "label!": nil, "nolabel": nil}, "a bb c+c"},
		{Args{"name": {"b"}}, "bb"},
		{Args{"name": {"^/a"}}, "a"},
		{Args{"name": {"^.$", "c+c"}}, "a c+c"},
		{Args{"name": {"["}}, ""},
		{Args{"is": {"b"}}, ""},
		{Args{"is": {"a", "bb"}}, "a bb"},
		{Args{"size": {"long"}}, "c+c"},
		{Args{"len": {"1", "02"}}, "a bb"},
		{Args{"least": {"1", "2"}}, "bb c+c"},
		{Args{"on": {"1"}}, "a"},
		{Args{"on": {"false", "0"}}, "bb c+c"},
		{Args{"label": {"x"}}, "a bb"},
		{Args{"label": {"x=2"}}, "bb"},
		{Args{"label": {"x", "y="}}, "a"},
		{Args{"label!": {"x"}}, "c+c"},
		{Args{"label!": {"x", "y"}}, "bb c+c"},
		{Args{"nolabel": {"x=1", "y"}}, "bb c+c"},
		{Args{"until": {"24h"}}, "a"},
		{Args{"before": {"30m"}}, "a bb"},
		{Args{"before": {"24h", "30m"}}, "a"},
		{Args{"glob": {"a*"}, "free": {"["}}, "a bb c+c"},
		{Args{"label": {"x"}, "on": {"false"}}, "bb"},
	} {
		match, err := table.Compile(tc.args)
		if err != nil {
			t.Errorf("%v: %v", tc.args, err)
			continue
		}
		var got []string
		for _, i := range items {
			if match(i) {
				got = append(got, i.name)
			}
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%v: %q, want %q", tc.args, s, tc.want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for want, args := range map[string]Args{
		"invalid filter 'moon'":                               {"moon": {"x"}},
		"invalid filter 'size=wide'":                          {"size": {"long", "wide"}},
		"invalid filter 'on=perhaps'":                         {"on": {"perhaps"}},
		"invalid filter 'len=x'":                              {"len": {"1", "x"}},
		"invalid filter 'on=0,1'":                             {"on": {"0", "1"}},
		"more than one until filter specified":                {"until": {"1h", "2h"}},
		"invalid filter 'until': the time is missing":         {"until": {}},
		"invalid filter 'until=soon': not a duration, Unix t": {"until": {"soon"}},
		"invalid filter 'glob=[': syntax error in pattern":    {"glob": {"["}},
	} {
		_, err := table.Compile(args)
		if !errors.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
	}
}

func TestArgsHas(t *testing.T) {
	a := Args{"a": {"1"}, "b": {}}
	if !a.Has("b", "a") || a.Has("b", "c") || Args(nil).Has("a") {
		t.Error("Has must report keys that have a value")
	}
}

func TestGlobs(t *testing.T) {
	for _, tc := range []struct {
		patterns, texts []string
		want            bool
	}{
		{[]string{"a*"}, []string{"x", "ab"}, true},
		{[]string{"b", "[a"}, []string{"a"}, false},
		{nil, []string{"a"}, false},
		{[]string{"*:v*"}, []string{"n:v2"}, true},
		{[]string{"*"}, []string{"a/b"}, false},
	} {
		if got := Globs(tc.patterns, tc.texts...); got != tc.want {
			t.Errorf("Globs(%q, %q) = %v", tc.patterns, tc.texts, got)
		}
	}
}

func TestParseTime(t *testing.T) {
	zone := time.FixedZone("here", 3600)
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, zone)
	for text, want := range map[string]time.Time{
		"24h":                       now.Add(-24 * time.Hour),
		"1h30m":                     now.Add(-90 * time.Minute),
		"1704164645":                time.Unix(1704164645, 0),
		"1704164645.5":              time.Unix(1704164645, 500_000_000),
		"1704164645.000000001":      time.Unix(1704164645, 1),
		"2026-01-02":                time.Date(2026, 1, 2, 0, 0, 0, 0, zone),
		"2026-01-02Z":               time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
		"2026-01-02T03":             time.Date(2026, 1, 2, 3, 0, 0, 0, zone),
		"2026-01-02T03:04":          time.Date(2026, 1, 2, 3, 4, 0, 0, zone),
		"2026-01-02T03:04:05":       time.Date(2026, 1, 2, 3, 4, 5, 0, zone),
		"2026-01-02T03:04:05.25Z":   time.Date(2026, 1, 2, 3, 4, 5, 250_000_000, time.UTC),
		"2026-01-02T03:04:05+02:00": time.Date(2026, 1, 2, 1, 4, 5, 0, time.UTC),
	} {
		if got, err := ParseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("ParseTime(%s) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "yesterday", "2026", "99999999999999999999", "1704164645.x"} {
		if got, err := ParseTime(text, now); err == nil {
			t.Errorf("ParseTime(%q) = %v, want an error", text, got)
		}
	}
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"label":["a","b=c"],"until":["24h"]}`)
	f.Add(`{"name":{"[":true}}`)
	f.Add(`{"glob":["[a"],"on":["1"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		args, err := Parse(text)
		if err != nil {
			return
		}
		match, err := table.Compile(args)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%v: want Invalid", err)
			}
			return
		}
		match(item{name: "a", labels: map[string]string{"x": "1"}})
	})
}
