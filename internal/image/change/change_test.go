package change_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ply/internal/errs"
	"ply/internal/image/change"
	"ply/internal/oci"
)

func TestApply(t *testing.T) {
	set := func(keys ...string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, k := range keys {
			m[k] = struct{}{}
		}
		return m
	}
	for _, c := range []struct {
		name  string
		from  oci.RunConfig
		lines []string
		want  oci.RunConfig
	}{
		{"cmd exec", oci.RunConfig{}, []string{`CMD ["a", "b c"]`}, oci.RunConfig{Cmd: []string{"a", "b c"}}},
		{"cmd shell", oci.RunConfig{}, []string{`cmd echo "hi" $X`}, oci.RunConfig{Cmd: []string{"/bin/sh", "-c", `echo "hi" $X`}}},
		{"cmd single quotes are no json", oci.RunConfig{}, []string{`CMD ['a']`}, oci.RunConfig{Cmd: []string{"/bin/sh", "-c", `['a']`}}},
		{"shell then cmd", oci.RunConfig{}, []string{`SHELL ["/bin/bash","-ec"]`, "CMD x"},
			oci.RunConfig{Shell: []string{"/bin/bash", "-ec"}, Cmd: []string{"/bin/bash", "-ec", "x"}}},
		{"entrypoint drops the inherited cmd", oci.RunConfig{Cmd: []string{"old"}}, []string{`ENTRYPOINT ["/e"]`}, oci.RunConfig{Entrypoint: []string{"/e"}}},
		{"entrypoint keeps a cmd of the changes", oci.RunConfig{Cmd: []string{"old"}}, []string{`CMD ["new"]`, `ENTRYPOINT ["/e"]`},
			oci.RunConfig{Entrypoint: []string{"/e"}, Cmd: []string{"new"}}},
		{"env new form", oci.RunConfig{Env: []string{"A=1", "B=2"}}, []string{`ENV A=3 C="x y" D='$A' E=a\ b F="\"q\" \n"`},
			oci.RunConfig{Env: []string{"A=3", "B=2", "C=x y", "D=$A", "E=a b", `F="q" \n`}}},
		{"env old form", oci.RunConfig{}, []string{"ENV MY_VERSION 1.3 and  more"}, oci.RunConfig{Env: []string{"MY_VERSION=1.3 and  more"}}},
		{"env expands, from before the line", oci.RunConfig{Env: []string{"PATH=/bin"}}, []string{`ENV PATH=$PATH:/x Q=${PATH}y Z=${no:-d$PATH} P=${PATH:+set} N=${no+x}`},
			oci.RunConfig{Env: []string{"PATH=/bin:/x", "Q=/biny", "Z=d/bin", "P=set", "N="}}},
		{"env dollar alone", oci.RunConfig{}, []string{`ENV A=5$ B=$$x C=\$x`}, oci.RunConfig{Env: []string{"A=5$", "B=x", "C=$x"}}},
		{"env patterns", oci.RunConfig{Env: []string{"V=1.22.3"}}, []string{`ENV A=${V%.*} B=${V##*.} C=${V//./-} D=${V/./_}`},
			oci.RunConfig{Env: []string{"V=1.22.3", "A=1.22", "B=3", "C=1-22-3", "D=1_22.3"}}},
		{"escape", oci.RunConfig{}, []string{"# escape=`\nENV A=c:\\d `\n B=2"}, oci.RunConfig{Env: []string{`A=c:\d`, "B=2"}}},
		{"a line continues in the next change", oci.RunConfig{}, []string{`ENV A=1 \`, "B=2"}, oci.RunConfig{Env: []string{"A=1", "B=2"}}},
		{"cmd of nothing", oci.RunConfig{Cmd: []string{"old"}}, []string{"CMD []"}, oci.RunConfig{Cmd: []string{}}},
		{"entrypoint of nothing", oci.RunConfig{Entrypoint: []string{"old"}}, []string{"ENTRYPOINT []"}, oci.RunConfig{}},
		{"expose an address", oci.RunConfig{}, []string{"EXPOSE 127.0.0.1:8080:80 9090:90/udp"}, oci.RunConfig{ExposedPorts: set("80/tcp", "90/udp")}},
		{"expose variables", oci.RunConfig{Env: []string{"P=80 81/udp"}}, []string{"EXPOSE $P"}, oci.RunConfig{Env: []string{"P=80 81/udp"}, ExposedPorts: set("80/tcp", "81/udp")}},
		{"expose", oci.RunConfig{}, []string{"EXPOSE 80 53/udp 8000-8002/TCP"},
			oci.RunConfig{ExposedPorts: set("80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp")}},
		{"label", oci.RunConfig{Labels: map[string]string{"a": "0"}}, []string{`LABEL a=1 "b.c"="x y" d=`, "LABEL e f g"},
			oci.RunConfig{Labels: map[string]string{"a": "1", "b.c": "x y", "d": "", "e": "f g"}}},
		{"onbuild", oci.RunConfig{OnBuild: []string{"RUN a"}}, []string{"ONBUILD  copy . /src"}, oci.RunConfig{OnBuild: []string{"RUN a", "copy . /src"}}},
		{"user", oci.RunConfig{}, []string{"USER www:data"}, oci.RunConfig{User: "www:data"}},
		{"volume", oci.RunConfig{}, []string{"VOLUME /a /b", `VOLUME ["/c d"]`}, oci.RunConfig{Volumes: set("/a", "/b", "/c d")}},
		{"workdir", oci.RunConfig{WorkingDir: "/a"}, []string{"WORKDIR b/../c"}, oci.RunConfig{WorkingDir: "/a/c"}},
		{"workdir is cleaned", oci.RunConfig{}, []string{"WORKDIR /a/../b/"}, oci.RunConfig{WorkingDir: "/b"}},
		{"workdir from nothing", oci.RunConfig{}, []string{"WORKDIR b"}, oci.RunConfig{WorkingDir: "/b"}},
		{"healthcheck", oci.RunConfig{}, []string{"HEALTHCHECK --interval=5s --retries=3 --start-interval=1s CMD curl -f x"},
			oci.RunConfig{Healthcheck: &oci.Healthcheck{Test: []string{"CMD-SHELL", "curl -f x"}, Interval: 5 * time.Second, StartInterval: time.Second, Retries: 3}}},
		{"healthcheck exec", oci.RunConfig{}, []string{`HEALTHCHECK CMD ["a","b"]`}, oci.RunConfig{Healthcheck: &oci.Healthcheck{Test: []string{"CMD", "a", "b"}}}},
		{"healthcheck none", oci.RunConfig{}, []string{"HEALTHCHECK none"}, oci.RunConfig{Healthcheck: &oci.Healthcheck{Test: []string{"NONE"}}}},
		{"stopsignal", oci.RunConfig{}, []string{"STOPSIGNAL SIGQUIT"}, oci.RunConfig{StopSignal: "SIGQUIT"}},
		{"stopsignal realtime", oci.RunConfig{}, []string{"STOPSIGNAL RTMIN+3"}, oci.RunConfig{StopSignal: "RTMIN+3"}},
		{"unset names", oci.RunConfig{Volumes: set("/a", "/b"), ExposedPorts: set("80/tcp", "53/udp"), Labels: map[string]string{"l": "1"}, Env: []string{"A=1", "B=2"}},
			[]string{"UNSET VOLUME /a", "unset expose 53/udp", "UNSET LABEL l", "UNSET ENV A", "ENV C=x$A"},
			oci.RunConfig{Volumes: set("/b"), ExposedPorts: set("80/tcp"), Env: []string{"B=2", "C=x"}}},
		{"unset all of it", oci.RunConfig{Volumes: set("/a"), ExposedPorts: set("80/tcp"), Cmd: []string{"c"}, Entrypoint: []string{"e"}, User: "u", WorkingDir: "/w", StopSignal: "9",
			Shell: []string{"s"}, Healthcheck: &oci.Healthcheck{Test: []string{"NONE"}}, OnBuild: []string{"RUN a"}},
			[]string{"UNSET VOLUME", "UNSET EXPOSE", "UNSET CMD", "UNSET ENTRYPOINT", "UNSET USER", "UNSET WORKDIR", "UNSET STOPSIGNAL", "UNSET SHELL", "UNSET HEALTHCHECK", "UNSET ONBUILD"},
			oci.RunConfig{}},
		{"several in one, continued, commented", oci.RunConfig{}, []string{"# c\nENV A=1 \\\n# between\n  B=2\n\nUSER u\r\n"},
			oci.RunConfig{Env: []string{"A=1", "B=2"}, User: "u"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.from
			if err := change.Apply(&got, c.lines); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"RUN x":              "RUN is not a valid change command",
		"FROM scratch":       "not a valid change command",
		"ENV":                "ENV requires at least one argument",
		"ENV A":              "ENV must have two arguments",
		"ENV A=1 B":          "can't find =",
		"ENV =x":             "names can not be blank",
		`ENV A="x`:           "matching double-quote",
		`ENV A='x`:           "matching single-quote",
		"ENV A=${B":          "unsupported modifier",
		"ENV A=${}":          "bad substitution",
		"ENV A=${B^x}":       "unsupported modifier",
		"CMD [1]":            "comprised of strings only",
		"ENV A=${B:-x":       "missing '}'",
		"ENV A=${B:?needed}": "B: needed",
		"ENV A=" + strings.Repeat("${B:-", 40) + strings.Repeat("}", 40): "nested deeper",
		"EXPOSE 0":                         "invalid containerPort",
		"EXPOSE 99999":                     "invalid containerPort",
		"EXPOSE 5-3":                       "invalid containerPort",
		"EXPOSE 80/icmp":                   "invalid proto",
		"HEALTHCHECK RUN x":                "Unknown type",
		"HEALTHCHECK CMD":                  "Missing command",
		"HEALTHCHECK --interval=1us CMD x": "cannot be less than",
		"HEALTHCHECK --nope=1 CMD x":       "unknown flag",
		"HEALTHCHECK --interval=1s --interval=2s CMD x": "duplicate flag",
		"HEALTHCHECK NONE x":                            "takes no arguments",
		"ONBUILD ONBUILD RUN x":                         "isn't allowed",
		"ONBUILD FROM x":                                "isn't allowed as an ONBUILD trigger",
		"SHELL /bin/sh":                                 "in JSON form",
		"SHELL []":                                      "at least one",
		"STOPSIGNAL garbage":                            "invalid signal",
		"STOPSIGNAL 65":                                 "invalid signal",
		"USER":                                          "exactly one argument",
		`VOLUME [""]`:                                   "empty string",
		"WORKDIR":                                       "exactly one argument",
		"WORKDIR $NONE":                                 "WORKDIR is empty",
		"ENV A=\x00":                                    "NUL",
		"UNSET":                                         "name an instruction",
		"UNSET VOLUME /none":                            "the image has no /none",
		"UNSET EXPOSE 80":                               "the image has no 80/tcp",
		"UNSET EXPOSE x":                                "invalid containerPort",
		"UNSET ENV":                                     "name the variables",
		"UNSET ENV NONE":                                "the image has no NONE",
		"UNSET USER root":                               "it has no names",
		"UNSET RUN":                                     "nothing of an image",
		"ENV A=" + strings.Repeat(`${B:-"}"`, 20000): "nested deeper",
	} {
		cfg := oci.RunConfig{Env: []string{"KEEP=1"}}
		err := change.Apply(&cfg, []string{"ENV OK=1", line})
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("Apply(%q) = %v, want %q", line, err, want)
		}
		if d := cmp.Diff(oci.RunConfig{Env: []string{"KEEP=1"}}, cfg); d != "" {
			t.Errorf("Apply(%q) failed, yet changed:\n%s", line, d)
		}
	}
}

// Variables whose values double must fail at the limit, before they use much memory.
func TestApplyBoundsGrowth(t *testing.T) {
	lines := []string{"ENV A=aaaaaaaaaaaaaaaa"}
	for range 64 {
		lines = append(lines, "ENV A=$A$A")
	}
	cfg := oci.RunConfig{}
	if err := change.Apply(&cfg, []string{"ENV A=" + strings.Repeat("a", 60000), "ENV B=${A//a/$A}"}); err == nil || !strings.Contains(err.Error(), "grows beyond") {
		t.Errorf("err = %v", err)
	}
	long := []string{"ENV A=" + strings.Repeat("a", 60000)}
	for range 2000 {
		long = append(long, "ENV B=$A")
	}
	if err := change.Apply(&cfg, long); err == nil || !strings.Contains(err.Error(), "grows beyond") {
		t.Errorf("err = %v", err)
	}
	if err := change.Apply(&cfg, lines); err == nil || !strings.Contains(err.Error(), "grows beyond") {
		t.Errorf("err = %v", err)
	}
}

func TestGrowth(t *testing.T) {
	sizes := map[string]int{"A": 100, "B": 10}
	for word, want := range map[string]int{
		"": 0, "abc": 3, "$A": 102, "${A}$B": 116, `\$A`: 103, "${A:-$B}": 118, "$AB": 3, "$": 1, "$$": 2,
		"${A//a/bb}":  10 + 101*11,
		"${B//a/$A}":  10 + 100 + 11*(1+10+100),
		"${A/x/y}$B.": 11 + 10 + 101*(1+11+10),
	} {
		if got := change.Growth(word, func(n string) int { return sizes[n] }); got != want {
			t.Errorf("Growth(%q) = %d, want %d", word, got, want)
		}
	}
}

func TestDepth(t *testing.T) {
	for word, want := range map[string]int{
		"": 0, "${A}": 0, "$A": 0, "${A:-x}": 1, "${A-${B+${C?x}}}": 3, "${A:-x}${B:-y}": 1, `${A:-"}"${B:-x}}`: 2, `"${A:-"${B:-x}"}"`: 2,
		"'${A:-${B:-x}}'": 2, `\${A:-${B:-x}}`: 2, "${A//${B:-x}/${C%y}}": 2, "${A/x/y}${B:-z}": 1, "$${A:-x}": 0, "${}${A:-${B:-x}}": 0,
		"${?:-${#:-x}}": 2, "${A:-'}'${B:-x}}": 2,
	} {
		if got := change.Depth(word); got != want {
			t.Errorf("Depth(%q) = %d, want %d", word, got, want)
		}
	}
}

// Growth bounds what the library makes of a word.
func TestGrowthIsABound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		env := map[string]string{}
		for _, n := range []string{"A", "B", "C"} {
			env[n] = strings.Repeat(rapid.SampledFrom([]string{"a", "ab", "é", "/", "$A"}).Draw(t, "text"), rapid.IntRange(0, 20).Draw(t, "times"))
		}
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"$A", "${B}", "${C:-", "}", "${A//a/", "${B/b/", "//", "/", "x", `"`, "'", `\`, "${A+", "${C%b", "${B##*a", "${A///", " "}), 0, 12).Draw(t, "parts")
		word := strings.Join(parts, "")
		cfg := oci.RunConfig{}
		for k, v := range env {
			cfg.Env = append(cfg.Env, k+"="+v)
		}
		out, err := change.NewState(cfg, '\\').Expand(word)
		if most := change.Growth(word, func(n string) int { return len(env[n]) }); err == nil && len(out) > most {
			t.Fatalf("%q expands to %d bytes, estimated %d", word, len(out), most)
		}
	})
}

func FuzzApply(f *testing.F) {
	for _, s := range []string{`ENV A="$B${C:-d}" E='x'`, `CMD ["a"]`, "HEALTHCHECK --interval=1s CMD x", "EXPOSE 1-65535", "LABEL a\\\n b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cfg := oci.RunConfig{Env: []string{"B=b"}}
		before := cmp.Diff(oci.RunConfig{Env: []string{"B=b"}}, cfg)
		if err := change.Apply(&cfg, []string{s}); err != nil && before != cmp.Diff(oci.RunConfig{Env: []string{"B=b"}}, cfg) {
			t.Error("failed, yet changed")
		}
	})
}
