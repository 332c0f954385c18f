package provenance

import (
	"fmt"
	"strings"

	"ply/internal/build/ops"
	"ply/internal/oci"
)

// The steps of a build, in the JSON form of BuildKit's operations.
type (
	buildConfig struct {
		Definition    []step                `json:"llbDefinition,omitempty"`
		DigestMapping map[oci.Digest]string `json:"digestMapping,omitempty"`
	}
	step struct {
		ID     string   `json:"id,omitempty"`
		Op     op       `json:"op"`
		Inputs []string `json:"inputs,omitempty"`
	}
	op struct {
		Op       map[string]any `json:"Op"`
		Platform *platform      `json:"platform,omitempty"`
	}
	platform struct {
		Architecture string `json:"Architecture,omitempty"`
		OS           string `json:"OS,omitempty"`
		Variant      string `json:"Variant,omitempty"`
	}
	source struct {
		Locations map[string]locations `json:"locations,omitempty"`
		Infos     []sourceInfo         `json:"infos,omitempty"`
	}
	sourceInfo struct {
		Filename string `json:"filename,omitempty"`
		Language string `json:"language,omitempty"`
		Data     []byte `json:"data,omitempty"`
	}
	locations struct {
		Locations []location `json:"locations"`
	}
	location struct {
		SourceIndex int         `json:"sourceIndex,omitempty"`
		Ranges      []textRange `json:"ranges"`
	}
	textRange struct {
		Start position `json:"start"`
		End   position `json:"end"`
	}
	position struct {
		Line      int `json:"line"`
		Character int `json:"character,omitempty"`
	}
	mount struct {
		Input    int    `json:"input"`
		Selector string `json:"selector,omitempty"`
		Dest     string `json:"dest,omitempty"`
		Output   int    `json:"output"`
		ReadOnly bool   `json:"readonly,omitempty"`
		Type     string `json:"mountType,omitempty"`
		ID       string `json:"id,omitempty"`
	}
)

// steps describes the graph of a build, and the text that it comes from.
func (b Build) steps() (*buildConfig, *source) {
	names := map[*ops.Vertex]string{}
	c := &buildConfig{DigestMapping: map[oci.Digest]string{}}
	src := &source{Locations: map[string]locations{}}
	for i, v := range b.Graph.Vertices {
		id := fmt.Sprintf("step%d", i)
		names[v], c.DigestMapping[v.Digest] = id, id
		s := step{ID: id, Op: op{Op: operation(v.Op)}}
		if v.Platform.OS != "" {
			s.Op.Platform = &platform{v.Platform.Architecture, v.Platform.OS, v.Platform.Variant}
		}
		for _, in := range v.Inputs {
			if !in.IsZero() {
				s.Inputs = append(s.Inputs, fmt.Sprintf("%s:%d", names[in.Vertex], in.Index))
			}
		}
		c.Definition = append(c.Definition, s)
		for _, l := range v.Locations {
			at := src.Locations[id]
			at.Locations = append(at.Locations, location{l.File, []textRange{{position{l.Start, l.StartChar}, position{l.End, l.EndChar}}}})
			src.Locations[id] = at
		}
	}
	for _, f := range b.Graph.Files {
		src.Infos = append(src.Infos, sourceInfo{f.Name, f.Language, f.Data})
	}
	return c, src
}

func sourceOp(identifier string, attrs map[string]string) map[string]any {
	s := map[string]any{"identifier": identifier}
	if len(attrs) > 0 {
		s["attrs"] = attrs
	}
	return map[string]any{"source": s}
}

// operation describes an operation. Values of secrets are in none.
func operation(o ops.Op) map[string]any {
	switch o := o.(type) {
	case *ops.Image:
		return sourceOp("docker-image://"+o.Ref, nil)
	case *ops.Layout:
		return sourceOp("oci-layout://"+o.Ref, nil)
	case *ops.Local:
		return sourceOp("local://"+o.Name, nil)
	case *ops.Git:
		id := "git://" + strings.TrimPrefix(strings.TrimPrefix(Redact(o.Remote), "https://"), "git://")
		if o.Ref != "" || o.Subdir != "" {
			id += "#" + o.Ref
		}
		if o.Subdir != "" {
			id += ":" + o.Subdir
		}
		return sourceOp(id, map[string]string{"git.fullurl": Redact(o.Remote)})
	case *ops.HTTP:
		attrs := map[string]string{}
		if o.Checksum != "" {
			attrs["http.checksum"] = string(o.Checksum)
		}
		return sourceOp(Redact(o.URL), attrs)
	case *ops.Exec:
		return map[string]any{"exec": execOp(o)}
	case *ops.Files:
		return map[string]any{"file": fileOp(o)}
	case *ops.Merge:
		return map[string]any{"merge": map[string]any{}}
	case *ops.Diff:
		return map[string]any{"diff": map[string]any{}}
	}
	return nil
}

func execOp(o *ops.Exec) map[string]any {
	var env []string
	for _, e := range o.Env {
		if name, _, _ := strings.Cut(e, "="); IsSecret(name) {
			e = name + "=" + redacted
		}
		env = append(env, e)
	}
	meta := map[string]any{"args": o.Args, "cwd": o.Dir}
	if len(env) > 0 {
		meta["env"] = env
	}
	if o.User != "" {
		meta["user"] = o.User
	}
	var mounts []mount
	for _, m := range o.Mounts {
		d := mount{Input: m.Input, Selector: m.Selector, Dest: m.Target, Output: m.Output, ReadOnly: m.ReadOnly}
		switch m.Kind {
		case ops.MountBind:
		case ops.MountCache:
			d.Type, d.ID = "CACHE", m.CacheID
		case ops.MountTmpfs:
			d.Type = "TMPFS"
		case ops.MountSecret:
			d.Type, d.ID = "SECRET", m.SecretID
		case ops.MountSSH:
			d.Type, d.ID = "SSH", m.SecretID
		}
		mounts = append(mounts, d)
	}
	out := map[string]any{"meta": meta, "mounts": mounts}
	if o.Network == ops.NetworkHost || o.Network == ops.NetworkNone {
		out["network"] = strings.ToUpper(string(o.Network))
	}
	if o.Privileged {
		out["security"] = "INSECURE"
	}
	return out
}

func fileOp(o *ops.Files) map[string]any {
	var actions []map[string]any
	for _, a := range o.Actions {
		d := map[string]any{"input": a.Base, "secondaryInput": a.From, "output": a.Output}
		switch f := a.Do.(type) {
		case *ops.Copy:
			d["copy"] = map[string]any{"src": f.Src, "dest": f.Dest}
		case *ops.MakeFile:
			d["mkfile"] = map[string]any{"path": f.Path, "mode": f.Mode} // its data may be the content of anything
		case *ops.MakeDir:
			d["mkdir"] = map[string]any{"path": f.Path, "mode": f.Mode}
		case *ops.Remove:
			d["rm"] = map[string]any{"path": f.Path}
		case *ops.Symlink:
			d["symlink"] = map[string]any{"oldpath": f.Target, "newpath": f.Path}
		}
		actions = append(actions, d)
	}
	return map[string]any{"actions": actions}
}
