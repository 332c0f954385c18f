package ops

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"

	"ply/internal/errs"
	"ply/internal/oci"
)

func marshal(t testing.TB, st llb.State) *pb.Definition {
	t.Helper()
	def, err := st.Marshal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

// sample uses most kinds of operation.
func sample() llb.State {
	base := llb.Image("docker.io/library/busybox:latest", llb.ResolveModeForcePull)
	src := llb.Local("context", llb.IncludePatterns([]string{"a", "b/**"}), llb.SharedKeyHint("context"))
	built := base.Run(
		llb.Args([]string{"sh", "-c", "make"}), llb.Dir("/src"), llb.AddEnv("A", "1"), llb.AddMount("/src", src, llb.Readonly),
		llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir("go", llb.CacheMountLocked)), llb.AddSecret("/run/secrets/x", llb.SecretID("x")),
		llb.WithCustomName("[2/3] RUN make"),
	).Root()
	copied := built.File(llb.Copy(src, "a", "/b/", &llb.CopyInfo{CreateDestPath: true, AllowWildcard: true, ChownOpt: &llb.ChownOpt{User: &llb.UserOpt{Name: "joe"}}}).
		Mkdir("/d", 0o755, llb.WithParents(true)).Rm("/gone", llb.WithAllowNotFound(true)))
	git := llb.Git("https://example.com/repo.git", "v1", llb.KeepGitDir())
	web := llb.HTTP("https://example.com/x.tgz", llb.Filename("x.tgz"))
	return llb.Merge([]llb.State{copied, git, llb.Diff(base, web)})
}

func TestDecode(t *testing.T) {
	g, err := Decode(marshal(t, sample()))
	if err != nil {
		t.Fatal(err)
	}
	at := map[oci.Digest]int{}
	kinds := map[string]*Vertex{}
	for i, v := range g.Vertices {
		at[v.Digest] = i + 1
		for _, in := range v.Inputs {
			if !in.IsZero() && at[in.Vertex.Digest] == 0 {
				t.Errorf("%s comes before its input %s", v.Name, in.Vertex.Name)
			}
		}
		switch v.Op.(type) {
		case *Exec:
			kinds["exec"] = v
		case *Files:
			kinds["files"] = v
		case *Git:
			kinds["git"] = v
		}
	}
	if _, ok := g.Root.Vertex.Op.(*Merge); !ok || len(g.Root.Vertex.Inputs) != 3 {
		t.Errorf("the root is %T with %d inputs", g.Root.Vertex.Op, len(g.Root.Vertex.Inputs))
	}
	x := kinds["exec"].Op.(*Exec)
	if strings.Join(x.Args, " ") != "sh -c make" || x.Dir != "/src" || len(x.Mounts) != 4 || kinds["exec"].Name != "[2/3] RUN make" {
		t.Errorf("%q %+v", kinds["exec"].Name, x)
	}
	found := map[MountKind]Mount{}
	for _, m := range x.Mounts {
		found[m.Kind] = m
	}
	if m := found[MountCache]; m.CacheID != "go" || m.Sharing != SharingLocked || m.Target != "/cache" {
		t.Errorf("cache mount %+v", m)
	}
	if m := found[MountSecret]; m.SecretID != "x" || m.Target != "/run/secrets/x" {
		t.Errorf("secret %+v", m)
	}
	f := kinds["files"].Op.(*Files)
	if len(f.Actions) != 3 || f.Actions[1].Base < len(kinds["files"].Inputs) {
		t.Errorf("actions %+v", f.Actions)
	}
	c := f.Actions[0].Do.(*Copy)
	if c.Src != "/a" && c.Src != "a" || !c.MakeDest || !c.Wildcards || c.Owner == nil || c.Owner.User.Name != "joe" || c.Mode != "" || c.Time != nil {
		t.Errorf("copy %+v", c)
	}
	if gi := kinds["git"].Op.(*Git); gi.Remote != "https://example.com/repo.git" || gi.Ref != "v1" || !gi.KeepGitDir {
		t.Errorf("git %+v", gi)
	}
}

func TestDecodeEmpty(t *testing.T) {
	for _, def := range []*pb.Definition{nil, {}} {
		if g, err := Decode(def); err != nil || !g.Root.IsZero() {
			t.Errorf("%v, %v", g, err)
		}
	}
}

func encode(t *testing.T, ops ...*pb.Op) *pb.Definition {
	t.Helper()
	def := &pb.Definition{}
	for _, op := range ops {
		raw, err := op.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, raw)
	}
	return def
}

func digestOf(t *testing.T, op *pb.Op) string {
	t.Helper()
	raw, err := op.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	return string(oci.DigestOf(raw))
}

// Each definition is refused, and its twin with the fault mended is taken.
func TestDecodeRefuses(t *testing.T) {
	image := func() *pb.Op {
		return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://docker.io/library/busybox:latest"}}}
	}
	command := func(edit func(*pb.ExecOp)) *pb.Op {
		e := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []*pb.Mount{{Dest: "/", Output: 0}}}
		edit(e)
		return &pb.Op{Op: &pb.Op_Exec{Exec: e}, Inputs: []*pb.Input{{Digest: digestOf(t, image())}}}
	}
	source := func(id string, attrs map[string]string) *pb.Op {
		return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id, Attrs: attrs}}}
	}
	many := make([]*pb.FileAction, maxList+1)
	for i := range many {
		many[i] = &pb.FileAction{Input: -1, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/x"}}}
	}
	action := func(a *pb.FileAction) *pb.Op {
		return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}}
	}
	for _, c := range []struct {
		name  string
		op    *pb.Op
		class error // nil = taken
	}{
		{"image", image(), nil},
		{"command", command(func(*pb.ExecOp) {}), nil},
		{"command without words", command(func(e *pb.ExecOp) { e.Meta.Args = nil }), errs.Invalid},
		{"command without root", command(func(e *pb.ExecOp) { e.Mounts[0].Dest = "/mnt" }), errs.Invalid},
		{"mount of an input that is not there", command(func(e *pb.ExecOp) { e.Mounts[0].Input = 1 }), errs.Invalid},
		{"mount of input -2", command(func(e *pb.ExecOp) { e.Mounts[0].Input = -2 }), errs.Invalid},
		{"huge output", command(func(e *pb.ExecOp) { e.Mounts[0].Output = 1 << 40 }), errs.Invalid},
		{"unknown mount", command(func(e *pb.ExecOp) { e.Mounts[0].MountType = 77 }), errs.Unimplemented},
		{"unknown network", command(func(e *pb.ExecOp) { e.Network = 77 }), errs.Unimplemented},
		{"secret as root", command(func(e *pb.ExecOp) { e.Mounts[0].MountType = pb.MountType_SECRET }), errs.Invalid},
		{"two mounts, one output", command(func(e *pb.ExecOp) { e.Mounts = append(e.Mounts, &pb.Mount{Dest: "/x"}) }), errs.Invalid},
		{"device", command(func(e *pb.ExecOp) { e.CdiDevices = []*pb.CDIDevice{{Name: "x"}} }), errs.Unimplemented},
		{"source without scheme", source("busybox", nil), errs.Invalid},
		{"source of an unknown scheme", source("ftp://example.com/", nil), errs.Unimplemented},
		{"unknown attribute", source("local://context", map[string]string{"local.new": "1"}), errs.Unimplemented},
		{"list that is none", source("local://context", map[string]string{pb.AttrIncludePatterns: "a"}), errs.Invalid},
		{"checksum that is none", source("https://example.com/x", map[string]string{pb.AttrHTTPChecksum: "md5:1"}), errs.Invalid},
		{"option as git branch", source("git://example.com/x.git#--upload-pack=x", nil), errs.Invalid},
		{"file operation without action", &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{}}}, errs.Invalid},
		{"too many actions", &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: many}}}, errs.Invalid},
		{"action", action(&pb.FileAction{Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/d"}}}), nil},
		{"action on a later one", action(&pb.FileAction{Input: 5, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/d"}}}), errs.Invalid},
		{"action of no kind", action(&pb.FileAction{Input: -1, SecondaryInput: -1}), errs.Unimplemented},
		{"merge of nothing there", &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 3}}}}}, errs.Invalid},
		{"nothing", &pb.Op{Platform: &pb.Platform{OS: "linux"}}, errs.Invalid},
		{"passthrough", &pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{}}}, errs.Unimplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			end := &pb.Op{Inputs: []*pb.Input{{Digest: digestOf(t, c.op)}}}
			_, err := Decode(encode(t, image(), c.op, end))
			if c.class == nil && err != nil || c.class != nil && !errors.Is(err, c.class) {
				t.Errorf("got %v, want class %v", err, c.class)
			}
		})
	}
	t.Run("no end", func(t *testing.T) {
		if _, err := Decode(encode(t, image())); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	})
	t.Run("missing input", func(t *testing.T) {
		if _, err := Decode(encode(t, &pb.Op{Inputs: []*pb.Input{{Digest: "sha256:none"}}})); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	})
	t.Run("output that is not there", func(t *testing.T) {
		if _, err := Decode(encode(t, image(), &pb.Op{Inputs: []*pb.Input{{Digest: digestOf(t, image()), Index: 1}}})); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	})
	t.Run("not a message", func(t *testing.T) {
		if _, err := Decode(&pb.Definition{Def: [][]byte{{0xff, 0xff}}}); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	})
}

// A chain of operations may be as long as the limit allows: the decoder must not recurse.
func TestDecodeDeepChain(t *testing.T) {
	st := llb.Scratch()
	for range 3000 {
		st = st.File(llb.Mkdir("/d", 0o755))
	}
	g, err := Decode(marshal(t, st))
	if err != nil || len(g.Vertices) != 3000 {
		t.Fatalf("%d vertices, %v", len(g.Vertices), err)
	}
}

func FuzzDecode(f *testing.F) {
	def := marshal(f, sample())
	for _, raw := range def.Def {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		g, err := Decode(&pb.Definition{Def: [][]byte{raw}})
		if err == nil && len(g.Vertices) > 0 {
			t.Error("one operation cannot be a whole definition")
		}
		op := &pb.Op{}
		if op.UnmarshalVT(raw) != nil {
			return
		}
		end, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(oci.DigestOf(raw))}}}).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if g, err := Decode(&pb.Definition{Def: [][]byte{raw, end}}); err == nil && g.Root.IsZero() {
			t.Error("a graph without a root")
		}
	})
}

// The credentials in an address are not in the name of a vertex.
func TestNamesHaveNoCredentials(t *testing.T) {
	for in, want := range map[string]string{
		"[internal] load git source https://u:p@h/r.git#main": "[internal] load git source https://xxxxx@h/r.git#main",
		"ADD https://token@h/x http://u:p%20@h:80/y@z /d":     "ADD https://xxxxx@h/x http://xxxxx@h:80/y@z /d",
		"ADD ftp://u:p@q@h/ /d":                               "ADD ftp://xxxxx@h/ /d",
		"git ssh://git@h/r.git":                               "git ssh://git@h/r.git",
		"git ssh://git:p@h/r.git":                             "git ssh://xxxxx@h/r.git",
		"COPY a@b https://h/x@y /d":                           "COPY a@b https://h/x@y /d",
	} {
		if got := withoutCredentials(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
