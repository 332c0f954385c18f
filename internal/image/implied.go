package image

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"ply/internal/image/change"
	"ply/internal/oci"
)

// implied returns the config that an image had when its lowest n layers were all it had, as its history implies: with the steps up to the one that made the
// next layer. The values come from the config where its steps are the last that set them, and from the texts of the steps otherwise. What no step of
// the history sets was there from the beginning. A history that does not list the layers implies nothing: the config is then whole.
func implied(cfg oci.Config, n int) oci.Config {
	out := oci.Config{
		Created: cfg.Created, Author: cfg.Author, Architecture: cfg.Architecture, Variant: cfg.Variant, OS: cfg.OS, OSVersion: cfg.OSVersion, OSFeatures: cfg.OSFeatures,
		Config: change.Clone(cfg.Config), RootFS: oci.RootFS{Type: "layers", DiffIDs: slices.Clone(cfg.RootFS.DiffIDs[:n])},
	}
	steps, layers := 0, 0
	for i, h := range cfg.History {
		if !h.EmptyLayer {
			layers++
		}
		if layers <= n {
			steps = i + 1
		}
	}
	if layers != len(cfg.RootFS.DiffIDs) || steps == 0 {
		return out
	}
	out.History = slices.Clone(cfg.History[:steps])
	if made := out.History[steps-1].Created; made != nil {
		out.Created = made
	}
	all := make([]instruction, len(cfg.History))
	for i, h := range cfg.History {
		all[i] = readInstruction(h.CreatedBy)
	}
	replay{all[:steps], all[steps:], cfg.Config}.apply(&out.Config)
	return out
}

// instruction is an instruction of a Dockerfile as a history shows it. An empty word is a step that does not change the config.
type instruction struct{ word, text string }

// configWords are the instructions that change the config.
var configWords = map[string]bool{
	"CMD": true, "ENTRYPOINT": true, "ENV": true, "EXPOSE": true, "HEALTHCHECK": true, "LABEL": true, "ONBUILD": true,
	"SHELL": true, "STOPSIGNAL": true, "USER": true, "VOLUME": true, "WORKDIR": true,
}

// readInstruction reads the text of a step as docker's builders write it: "/bin/sh -c #(nop)  CMD [\"sh\"]" or "CMD [\"sh\"] # buildkit".
func readInstruction(by string) instruction {
	if _, rest, ok := strings.Cut(by, "#(nop) "); ok {
		by = rest
	}
	by = strings.TrimSuffix(strings.TrimSpace(by), "# buildkit")
	word, text, _ := strings.Cut(by, " ")
	if !configWords[word] {
		return instruction{}
	}
	return instruction{word, strings.TrimSpace(text)}
}

// replay says how a config came about: by the steps done, and those after them, which led to the last config.
type replay struct {
	done, later []instruction
	last        oci.RunConfig
}

// apply sets in cfg, which is a copy of the last config, what the steps done left.
func (r replay) apply(cfg *oci.RunConfig) {
	r.text("USER", &cfg.User)
	r.text("WORKDIR", &cfg.WorkingDir)
	r.text("STOPSIGNAL", &cfg.StopSignal)
	r.command("ENTRYPOINT", &cfg.Entrypoint)
	r.command("SHELL", &cfg.Shell)
	r.cmd(cfg)
	if r.sets(r.later, "HEALTHCHECK") {
		cfg.Healthcheck = nil // the text of an earlier one does not say all of it
	}
	cfg.OnBuild = cfg.OnBuild[:len(cfg.OnBuild)-min(len(cfg.OnBuild), r.count(r.later, "ONBUILD"))]
	maps.DeleteFunc(cfg.ExposedPorts, func(port string, _ struct{}) bool {
		return r.addedLater("EXPOSE", port, strings.TrimSuffix(port, "/tcp"))
	})
	maps.DeleteFunc(cfg.Volumes, func(path string, _ struct{}) bool { return r.addedLater("VOLUME", path) })
	var env []string
	for _, kv := range cfg.Env {
		name, value, _ := strings.Cut(kv, "=")
		if value, ok := r.pair("ENV", name, value, func(k string) bool { return hasEnv(r.last.Env, k) }); ok {
			env = append(env, name+"="+value)
		}
	}
	cfg.Env = env
	for name, value := range cfg.Labels {
		value, ok := r.pair("LABEL", name, value, func(k string) bool { _, ok := r.last.Labels[k]; return ok })
		if cfg.Labels[name] = value; !ok {
			delete(cfg.Labels, name)
		}
	}
}

func (r replay) count(steps []instruction, word string) (n int) {
	for _, i := range steps {
		if i.word == word {
			n++
		}
	}
	return n
}

func (r replay) sets(steps []instruction, word string) bool { return r.count(steps, word) > 0 }

// text sets a value that one word sets. It stays what it is when no later step sets it.
func (r replay) text(word string, v *string) {
	if !r.sets(r.later, word) {
		return
	}
	*v = ""
	for _, i := range r.done {
		if i.word == word {
			*v = strings.Trim(i.text, "[]") // docker once wrote STOPSIGNAL [SIGTERM]
		}
	}
}

// command sets a list of words, as text sets a word.
func (r replay) command(word string, v *[]string) {
	if !r.sets(r.later, word) {
		return
	}
	*v = nil
	for _, i := range r.done {
		if i.word == word {
			*v = readList(i.text)
		}
	}
}

// cmd sets Cmd, which an ENTRYPOINT resets unless its own build had set it; that it had is seen only when nothing set Cmd afterwards.
func (r replay) cmd(cfg *oci.RunConfig) {
	if !r.sets(r.later, "CMD") && !r.sets(r.later, "ENTRYPOINT") {
		return
	}
	if !r.sets(r.later, "CMD") && !r.sets(r.done, "CMD") {
		return // no step sets it
	}
	cfg.Cmd = nil
	for _, i := range r.done {
		switch i.word {
		case "CMD":
			cfg.Cmd = readList(i.text)
		case "ENTRYPOINT":
			cfg.Cmd = nil
		}
	}
}

// addedLater reports whether only a later step names one of the words.
func (r replay) addedLater(word string, names ...string) bool {
	has := func(steps []instruction) bool {
		return slices.ContainsFunc(steps, func(i instruction) bool {
			return i.word == word && slices.ContainsFunc(strings.FieldsFunc(i.text, func(c rune) bool { return strings.ContainsRune(" \t[],\"", c) }), func(f string) bool {
				f = strings.TrimSuffix(strings.TrimPrefix(f, "map["), ":{}") // docker's EXPOSE map[80/tcp:{}]
				return slices.Contains(names, f)
			})
		})
	}
	return has(r.later) && !has(r.done)
}

// pair returns what a variable or label was, and whether it was there. last is its value in the end; known reports the names of all.
func (r replay) pair(word, name, last string, known func(string) bool) (string, bool) {
	if !r.assigns(r.later, word, name, known) {
		return last, true
	}
	value, ok := "", false
	for _, i := range r.done {
		if i.word == word {
			if v, has := readPairs(i.text, known)[name]; has {
				value, ok = v, true
			}
		}
	}
	return value, ok
}

func (r replay) assigns(steps []instruction, word, name string, known func(string) bool) bool {
	return slices.ContainsFunc(steps, func(i instruction) bool {
		if i.word != word {
			return false
		}
		_, ok := readPairs(i.text, known)[name]
		return ok
	})
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { k, _, _ := strings.Cut(kv, "="); return k == name })
}

// readPairs reads NAME=VALUE…, or the old form NAME VALUE. Values are not quoted in a history, so that only the known names begin a new pair.
func readPairs(text string, known func(string) bool) map[string]string {
	pairs := map[string]string{}
	name, value := "", ""
	end := func() {
		if name != "" {
			pairs[name] = unquote(strings.TrimSuffix(value, " "))
		}
	}
	for word := range strings.SplitAfterSeq(text, " ") {
		if k, v, ok := strings.Cut(word, "="); ok && known(unquote(k)) {
			end()
			name, value = unquote(k), v
		} else if name == "" && value == "" && known(strings.TrimSpace(word)) {
			name = strings.TrimSpace(word)
		} else {
			value += word
		}
	}
	end()
	return pairs
}

// unquote removes the quotes around a text that has them.
func unquote(s string) string {
	if len(s) > 1 && s[0] == '"' {
		if u, err := strconv.Unquote(s); err == nil {
			return u
		}
	}
	return s
}

// readList reads a list of words: JSON, or quoted words without commas, or words without quotes. A text without brackets is a line for the shell.
func readList(text string) []string {
	inner, ok := strings.CutPrefix(text, "[")
	if inner, ok2 := strings.CutSuffix(inner, "]"); ok && ok2 {
		var list []string
		for rest := strings.Trim(inner, " ,"); rest != ""; rest = strings.TrimLeft(rest, " ,") {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return strings.Fields(strings.ReplaceAll(inner, ",", " "))
			}
			word, err := strconv.Unquote(quoted)
			if err != nil {
				return strings.Fields(inner)
			}
			list, rest = append(list, word), rest[len(quoted):]
		}
		return list
	}
	return []string{"/bin/sh", "-c", text}
}
