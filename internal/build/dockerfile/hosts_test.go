package dockerfile_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// stranger accepts connections and says nothing.
func stranger(t *testing.T) (address string, connections *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections = &atomic.Int32{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			connections.Add(1)
			open = append(open, c)
		}
		for _, c := range open {
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String(), connections
}

// sshBuild builds from a Dockerfile with a context, images, and whatever the options name.
func sshBuild(t *testing.T, text string, opts map[string]string, images map[string]string) (*dockerfile.Output, *solver, error) {
	t.Helper()
	s := &solver{
		locals: map[string]map[string]string{"context": {"f": "x"}, "dockerfile": {"Dockerfile": text}},
		images: map[string]string{"docker.io/library/alpine:latest": ""},
	}
	for k, v := range images {
		s.images[k] = v
	}
	if c := opts["context"]; c != "" {
		remote, _, _ := strings.Cut(c, "#")
		s.locals[remote] = map[string]string{"Dockerfile": text}
	}
	req := dockerfile.Request{Options: opts, SessionID: "session", Platforms: []oci.Platform{{OS: "linux", Architecture: "amd64"}}}
	out, err := dockerfile.Build(t.Context(), req, s)
	return out, s, err
}

// remotes returns the git sources of all images.
func remotes(out *dockerfile.Output) (list []*ops.Git, names string) {
	for _, img := range out.Images {
		for _, v := range img.Graph.Vertices {
			names += v.Name + "\n"
			if g, ok := v.Op.(*ops.Git); ok {
				list = append(list, g)
			}
		}
	}
	return list, names
}

// The front end connects to no host of a repository by ssh, and what it makes has the address as it was given: only package source, which checks addresses,
// connects.
func TestFrontEndConnectsToNoHost(t *testing.T) {
	at, connections := stranger(t)
	url := "ssh://git@" + at + "/r.git"
	for name, c := range map[string]struct {
		text   string
		opts   map[string]string
		remote string
		ref    string
		step   string // the history has it
	}{
		"add":             {"FROM scratch\nADD " + url + " /d\n", nil, url, "", "ADD " + url + " /d"},
		"fragment":        {"FROM scratch\nADD " + url + "#v1:sub /d\n", nil, url, "v1", "ADD " + url + "#v1:sub /d"},
		"query":           {"FROM scratch\nADD " + url + "?branch=b /d\n", nil, url, "refs/heads/b", "ADD " + url + "?branch=b /d"},
		"variable behind": {"FROM scratch\nARG V=v2\nADD " + url + "#${V} /d\n", nil, url, "v2", "ADD " + url + "#v2 /d"},
		"json":            {"FROM scratch\nADD [\"" + url + "\", \"/d\"]\n", nil, url, "", "ADD " + url + " /d"},
		"quoted":          {"FROM scratch\nADD \"" + url + "\" /d\n", nil, url, "", "ADD " + url + " /d"},
		"continued":       {"FROM scratch\nADD --keep-git-dir=true \\\n  # why\n  " + url + " \\\n  /d\nENV A=1\n", nil, url, "", "ADD " + url + " /d"},
		"scheme in capitals": {"FROM scratch\nADD SSH://git@" + at + "/r.git /d\n", nil, url, "",
			"ADD SSH://git@" + at + "/r.git /d"},
		"no user":          {"FROM scratch\nADD ssh://" + at + "/r.git /d\n", nil, "ssh://" + at + "/r.git", "", "ADD ssh://" + at + "/r.git /d"},
		"scp":              {"FROM scratch\nADD git@127.0.0.1:r.git#main /d\n", nil, "git@127.0.0.1:r.git", "main", "ADD git@127.0.0.1:r.git#main /d"},
		"stage":            {"FROM scratch AS a\nADD " + url + " /d\nFROM alpine\nCOPY --from=a /d /d\n", nil, url, "", ""},
		"trigger":          {"FROM scratch AS a\nONBUILD ADD " + url + " /d\nFROM a\n", nil, url, "", "ADD " + url + " /d"},
		"context":          {"FROM scratch\nCOPY f /f\n", map[string]string{"context": url + "#main"}, url, "main", ""},
		"syntax":           {"# syntax=docker/dockerfile:1\nFROM scratch\nADD " + url + " /d\n", nil, url, "", "ADD " + url + " /d"},
		"two":              {"FROM scratch\nADD " + url + " ssh://git@other.test/o.git /d/\n", nil, url, "", "ssh://git@other.test/o.git /d/"},
		"with a directory": {"FROM alpine\nADD f " + url + " /d/\n", nil, url, "", "ADD f " + url + " /d/"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := sshBuild(t, c.text, c.opts, nil)
			if err != nil {
				t.Fatal(err)
			}
			list, names := remotes(out)
			if len(list) == 0 || list[0].Remote != c.remote || list[0].Ref != c.ref || list[0].SSHSocket != "default" || list[0].KnownHosts != "" {
				t.Errorf("sources %+v, want %s %s", list, c.remote, c.ref)
			}
			for _, img := range out.Images {
				if !strings.Contains(string(img.Config), c.step) {
					t.Errorf("the history of %s does not have %q", img.Config, c.step)
				}
				text := names + string(img.Config) + string(img.Definition)
				for _, f := range img.Graph.Files {
					text += string(f.Data)
				}
				if strings.Contains(text, "ply..") {
					t.Errorf("the name in place of a host is in %q", text)
				}
				if g, err := ops.DecodeBytes(img.Definition); err != nil || g.Root.Vertex.Digest != img.Graph.Root.Vertex.Digest {
					t.Errorf("the definition is of another graph: %v", err)
				}
				for _, v := range img.Graph.Vertices {
					if _, ok := v.Op.(*ops.Git); ok && strings.HasPrefix(c.step, "ADD") && len(v.Name) == 0 {
						t.Error("a source has no name")
					}
				}
			}
			if string(out.File.Data) != c.text {
				t.Errorf("the Dockerfile is %q", out.File.Data)
			}
		})
	}
	if n := connections.Load(); n > 0 {
		t.Errorf("%d connections", n)
	}
}

// An address by ssh whose host the text of the ADD does not have is refused, with its line, before the front end sees it.
func TestAddressesOfVariablesAreRefused(t *testing.T) {
	at, connections := stranger(t)
	url := "ssh://git@" + at + "/r.git"
	base := func(config string) map[string]string {
		return map[string]string{"docker.io/library/own:latest": `{"architecture":"amd64","os":"linux","config":` + config + `,"rootfs":{"type":"layers","diff_ids":[]},"history":[]}`}
	}
	host, port, _ := net.SplitHostPort(at)
	for name, c := range map[string]struct {
		text   string
		line   int
		opts   map[string]string
		images map[string]string
	}{
		"argument":             {"FROM scratch\nARG U=" + url + "\nADD $U /d\n", 3, nil, nil},
		"given argument":       {"FROM scratch\nARG U\nADD $U /d\n", 3, map[string]string{"build-arg:U": url}, nil},
		"argument before FROM": {"ARG U=" + url + "\nFROM scratch\nARG U\nADD $U /d\n", 4, nil, nil},
		"environment":          {"FROM scratch\nENV U=" + url + "\nADD ${U} /d\n", 3, nil, nil},
		"parts":                {"FROM scratch\nENV A=s B=h\nADD ${A}sh://git@$B$A" + at + "/r /d\n", 3, nil, nil},
		"host":                 {"FROM scratch\nENV A=" + host + "\nADD ssh://git@${A}:" + port + "/r /d\n", 3, nil, nil},
		"default":              {"FROM scratch\nADD ${none:-" + url + "} /d\n", 2, nil, nil},
		"replaced":             {"FROM scratch\nENV A=xxx://git@" + at + "/r\nADD ${A/xxx/ssh} /d\n", 3, nil, nil},
		"quotes":               {"FROM scratch\nADD s\"sh\"://git@" + at + "/r /d\n", 2, nil, nil},
		"escapes":              {"FROM scratch\nADD s\\sh://git@" + at + "/r /d\n", 2, nil, nil},
		"in parts":             {"FROM scratch\nADD ssh://git@\\\n" + at + "/r.git /d\n", 2, nil, nil},
		"earlier stage":        {"FROM scratch AS a\nENV U=" + url + "\nFROM a\nADD $U /d\n", 4, nil, nil},
		"stage of a variable":  {"ARG S=a\nFROM scratch AS a\nENV U=" + url + "\nFROM $S\nADD $U /d\n", 5, nil, nil},
		"platform":             {"FROM scratch\nARG TARGETARCH\nENV U=${TARGETARCH/amd64/ssh}://git@" + at + "/r\nADD $U /d\n", 4, map[string]string{"platform": "linux/arm64,linux/amd64"}, nil},
		"base image":           {"FROM own\nADD $U /d\n", 2, nil, base(`{"Env":["U=` + url + `"]}`)},
		"named context":        {"FROM scratch AS a\nFROM a\nADD $U /d\n", 3, map[string]string{"context:a": "docker-image://own"}, base(`{"Env":["U=` + url + `"]}`)},
		"trigger":              {"FROM own\n", 1, nil, base(`{"OnBuild":["ADD ` + url + ` /d"]}`)},
		"trigger of a stage":   {"FROM scratch AS a\nONBUILD ADD $U /d\nFROM a\n", 0, map[string]string{"build-arg:U": url}, nil},
		"twice in a line":      {"FROM scratch\nADD " + url + " /d/" + url + "\n", 2, nil, nil},
		"scp":                  {"FROM scratch\nENV U=git@127.0.0.1:r\nADD $U /d\n", 3, nil, nil},
		"scp, parts":           {"FROM scratch\nENV U=@\nADD git${U}127.0.0.1:r /d\n", 3, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := sshBuild(t, c.text, c.opts, c.images)
			if name == "trigger of a stage" { // an argument is not one of the next stage
				if list, _ := remotes(out); err == nil && len(list) > 0 {
					t.Errorf("sources %+v", list)
				}
				return
			}
			var e *dockerfile.Error
			if !errors.Is(err, errs.Invalid) || !errors.As(err, &e) || !strings.Contains(err.Error(), "by ssh") {
				t.Fatalf("error %v", err)
			}
			if e.Line() != c.line {
				t.Errorf("line %d, want %d", e.Line(), c.line)
			}
		})
	}
	for _, v := range []string{"ssh://git@[fe80::1%25eth0]/r", "ssh://-oProxyCommand=x/r"} {
		if _, _, err := sshBuild(t, "FROM scratch\nCOPY f /\n", map[string]string{"context": v}, nil); !errors.Is(err, errs.Invalid) {
			t.Errorf("context %s: %v", v, err)
		}
	}
	if n := connections.Load(); n > 0 {
		t.Errorf("%d connections", n)
	}
}

// What the look for addresses costs is bounded.
func TestLookForAddressesIsBounded(t *testing.T) {
	images := map[string]string{}
	text, used := "", ""
	for i := range 40 {
		name := fmt.Sprint("own", i)
		images["docker.io/library/"+name+":latest"] = fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Env":["N=%d"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[]}`, i)
		text += "FROM " + name + " AS s" + fmt.Sprint(i) + "\n"
		used += fmt.Sprintf("COPY --from=s%d /f /f%d\n", i, i)
	}
	text += "FROM own0\n" + used + strings.Repeat("ENV A=1\n", 3000)
	if _, _, err := sshBuild(t, text+"ADD f /f\n", nil, images); err != nil {
		t.Errorf("without a variable: %v", err)
	}
	if _, _, err := sshBuild(t, text+"ADD $A /f\n", nil, images); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "too many base images and platforms") {
		t.Errorf("error %v", err)
	}
}

// Addresses that are none by ssh are not refused, whatever variables they have.
func TestAddressesOfVariablesAreAllowed(t *testing.T) {
	for _, text := range []string{
		"FROM scratch\nARG U=https://own.test/r.git\nADD $U /d\n", "FROM scratch\nARG U=http://own.test/f\nADD $U /d\n", "FROM scratch\nARG F=f\nADD $F ${F} \"$F\" /d/\n",
		"FROM scratch\nENV U=user@host:x\nCOPY f /d\n", "FROM scratch\nARG V=1\nADD https://own.test/ssh://a@b:c-$V /d\n", "FROM alpine\nADD a@b /d\n",
		"FROM scratch\nADD <<EOF /d\nssh://git@own.test/r\nEOF\n",
	} {
		out, _, err := sshBuild(t, text, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := fmt.Sprint(out.Images[0].Graph.Vertices); got == "" {
			t.Error("no operations")
		}
	}
}

// What an error or a warning says has the host.
func TestErrorsHaveTheHost(t *testing.T) {
	_, s, err := sshBuild(t, "FROM scratch\nADD ssh://git@own.test/r.git?nope=1 /d\n", nil, nil)
	if err == nil || strings.Contains(dockerfile.Format(err), "ply..") || !strings.Contains(dockerfile.Format(err), "ADD ssh://git@own.test/r.git?nope=1 /d") {
		t.Errorf("%s, %v", dockerfile.Format(err), s.warnings)
	}
	_, s, err = sshBuild(t, "FROM scratch\nadd ssh://git@own.test/r.git /d\nENV a b\n", nil, nil)
	if err != nil || len(s.warnings) == 0 {
		t.Fatalf("%v, %v", err, s.warnings)
	}
	for _, w := range s.warnings {
		if text := fmt.Sprint(w, string(w.File.Data)); strings.Contains(text, "ply..") || !strings.Contains(text, "own.test") {
			t.Errorf("warning %s", text)
		}
	}
}
