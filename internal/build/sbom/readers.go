package sbom

import (
	"bufio"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"net/textproto"
	"path"
	"strings"

	"ply/internal/build/tree"
	"ply/internal/oci"
)

// fields reads paragraphs of "Key: value" lines, as dpkg and mail have them. Continuation lines are dropped.
func fields(data []byte, sep string, paragraph func(map[string]string)) {
	cur := map[string]string{}
	flush := func() {
		if len(cur) > 0 {
			paragraph(cur)
			cur = map[string]string{}
		}
	}
	for line := range bytes.Lines(data) {
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case text == "":
			flush()
		case text[0] == ' ' || text[0] == '\t':
		default:
			if k, v, ok := strings.Cut(text, sep); ok && cur[k] == "" && len(cur) < 100 {
				cur[k] = strings.TrimSpace(v)
			}
		}
	}
	flush()
}

func (s *scan) osRelease(_ string, data []byte) {
	for line := range bytes.Lines(data) {
		k, v, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		v = strings.Trim(v, `"'`)
		if len(v) > 100 || !printable(v) {
			continue
		}
		switch k {
		case "ID":
			s.distro[0] = v
		case "VERSION_ID":
			s.distro[1] = v
		}
	}
}

func (s *scan) dpkg(name string, data []byte) {
	fields(data, ":", func(f map[string]string) {
		if st := f["Status"]; st != "" && !strings.HasSuffix(st, " installed") {
			return
		}
		src, _, _ := strings.Cut(f["Source"], " ")
		s.add(Package{Kind: "deb", Name: f["Package"], Version: f["Version"], Arch: f["Architecture"], Source: src, From: name})
	})
}

func (s *scan) apk(name string, data []byte) {
	fields(data, ":", func(f map[string]string) {
		s.add(Package{Kind: "apk", Name: f["P"], Version: f["V"], Arch: f["A"], License: f["L"], Source: f["o"], From: name})
	})
}

// npm adds a package of npm; the scope of a name is its namespace.
func (s *scan) npm(name, version, license, from string) {
	ns := ""
	if strings.HasPrefix(name, "@") {
		ns, name, _ = strings.Cut(name, "/")
	}
	s.add(Package{Kind: "npm", Namespace: ns, Name: name, Version: version, License: license, From: from})
}

func (s *scan) npmLock(name string, data []byte) {
	type dependency struct {
		Version      string                     `json:"version"`
		Dependencies map[string]json.RawMessage `json:"dependencies"`
	}
	var lock struct {
		Packages map[string]struct {
			Version string `json:"version"`
			License any    `json:"license"`
			Link    bool   `json:"link"`
		} `json:"packages"`
		Dependencies map[string]json.RawMessage `json:"dependencies"`
	}
	if oci.DecodeJSON(data, &lock) != nil {
		return
	}
	for at, p := range lock.Packages {
		if i := strings.LastIndex(at, "node_modules/"); i >= 0 && !p.Link {
			license, _ := p.License.(string)
			s.npm(at[i+len("node_modules/"):], p.Version, license, name)
		}
	}
	if len(lock.Packages) > 0 {
		return
	}
	var walk func(map[string]json.RawMessage, int)
	walk = func(list map[string]json.RawMessage, depth int) {
		for n, raw := range list {
			var d dependency
			if depth < 64 && json.Unmarshal(raw, &d) == nil {
				s.npm(n, d.Version, "", name)
				walk(d.Dependencies, depth+1)
			}
		}
	}
	walk(lock.Dependencies, 0)
}

func (s *scan) npmPackage(name string, data []byte) {
	var p struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		License any    `json:"license"`
	}
	if oci.DecodeJSON(data, &p) != nil || p.Version == "" {
		return
	}
	license, _ := p.License.(string)
	s.npm(p.Name, p.Version, license, name)
}

func (s *scan) python(name string, data []byte) {
	h, err := textproto.NewReader(bufio.NewReader(io.LimitReader(bytes.NewReader(data), 1<<20))).ReadMIMEHeader()
	if err != nil && len(h) == 0 {
		return
	}
	license := h.Get("License-Expression")
	if license == "" {
		license = h.Get("License")
	}
	// The index treats these characters as one.
	n := strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(h.Get("Name")))
	s.add(Package{Kind: "pypi", Name: n, Version: h.Get("Version"), License: license, From: name})
}

// cargo reads the tables [[package]] of a lock file, which a program writes.
func (s *scan) cargo(name string, data []byte) {
	var p Package
	in := false
	flush := func() {
		if in {
			s.add(p)
		}
		p = Package{Kind: "cargo", From: name}
	}
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(string(line))
		if strings.HasPrefix(text, "[") {
			flush()
			in = text == "[[package]]"
			continue
		}
		k, v, ok := strings.Cut(text, " = ")
		if v = strings.Trim(v, `"`); !ok || !in {
			continue
		}
		switch k {
		case "name":
			p.Name = v
		case "version":
			p.Version = v
		}
	}
	flush()
}

// gemLock reads the lines "    name (version)" of a lock file; those that are indented more are what a gem needs.
func (s *scan) gemLock(name string, data []byte) {
	for line := range bytes.Lines(data) {
		text := strings.TrimRight(string(line), "\r\n")
		rest, ok := strings.CutPrefix(text, "    ")
		if !ok || strings.HasPrefix(rest, " ") {
			continue
		}
		gem, version, ok := strings.Cut(strings.TrimSuffix(rest, ")"), " (")
		if ok && version != "" && version[0] >= '0' && version[0] <= '9' {
			s.add(Package{Kind: "gem", Name: gem, Version: version, From: name})
		}
	}
}

// gemspec takes name and version from the name of an installed specification: rake-13.0.6.gemspec.
func (s *scan) gemspec(name string, _ []byte) {
	gem := strings.TrimSuffix(path.Base(name), ".gemspec")
	for i := len(gem) - 1; i > 0; i-- {
		if gem[i-1] == '-' && gem[i] >= '0' && gem[i] <= '9' {
			s.add(Package{Kind: "gem", Name: gem[:i-1], Version: gem[i:], From: name})
			return
		}
	}
}

func (s *scan) composer(name string, data []byte) {
	type list []struct {
		Name    string   `json:"name"`
		Version string   `json:"version"`
		License []string `json:"license"`
	}
	var lock struct {
		Packages list `json:"packages"`
		Dev      any  `json:"packages-dev"`
	}
	var plain list
	if oci.DecodeJSON(data, &lock) != nil {
		if oci.DecodeJSON(data, &plain) != nil {
			return
		}
		lock.Packages = plain // installed.json of version 1
	}
	for _, p := range lock.Packages {
		ns, n, ok := strings.Cut(p.Name, "/")
		if ok {
			s.add(Package{Kind: "composer", Namespace: ns, Name: n, Version: p.Version, License: strings.Join(p.License, " OR "), From: name})
		}
	}
}

// maxProgram bounds the programs that are looked at.
const maxProgram = 2 << 30

// goProgram reads the modules that a program written in Go was built from.
func (s *scan) goProgram(e *tree.Entry) error {
	if e.Info.Size < 64<<10 || e.Info.Size > maxProgram {
		return nil
	}
	f, err := e.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != "\x7fELF" {
		return nil
	}
	info, err := readBuildInfo(f)
	if err != nil {
		return nil // not a program of Go, or a damaged one
	}
	add := func(mod, version string) {
		if version == "(devel)" {
			version = ""
		}
		ns, n := path.Split(mod)
		s.add(Package{Kind: "golang", Namespace: strings.Trim(ns, "/"), Name: n, Version: version, From: e.Rel})
	}
	add("stdlib", strings.TrimPrefix(info.GoVersion, "go"))
	if info.Main.Path != "" {
		add(info.Main.Path, info.Main.Version)
	}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		add(d.Path, d.Version)
	}
	return nil
}

// readBuildInfo reads the note that the Go linker leaves. The library panics on some damaged programs.
func readBuildInfo(r io.ReaderAt) (info *buildinfo.BuildInfo, err error) {
	defer func() {
		if recover() != nil {
			info, err = nil, errEnd
		}
	}()
	return buildinfo.Read(r)
}
