package crash

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ply/internal/oci"
	"ply/internal/store/meta/metatest"
	"ply/internal/transfer/remote/remotetest"
)

var allDamage = flag.Bool("crash.damage", false, "damage each object in each way, and not in one way")

// damage is one way to harm a file or directory.
type damage struct {
	name string
	do   func(path string) error
}

// flip changes one bit at an offset; a negative one counts from the middle.
func flip(at int) damage {
	return damage{"flip", func(path string) error {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return fmt.Errorf("%s has nothing to flip: %w", path, err)
		}
		i := at
		if at < 0 {
			i = len(b) / 2
		}
		b[i] ^= 0x20
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(b[i:i+1], int64(i))
		return err
	}}
}

var (
	shorten = damage{"truncate", func(path string) error { return os.Truncate(path, 1) }}
	erase   = damage{"delete", os.RemoveAll}

	flipDocument = flip(0)  // a bit of the first brace: the text is not JSON any more
	flipContent  = flip(-1) // a bit in the middle
)

// flipPages changes one bit in the header of every page of a database but the first two, of which one is enough.
var flipPages = damage{"flip", func(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	var b [1]byte
	for at := 2*int64(os.Getpagesize()) + 8; at < fi.Size(); at += int64(os.Getpagesize()) {
		if _, err := f.ReadAt(b[:], at); err != nil {
			return err
		}
		b[0] ^= 0x20
		if _, err := f.WriteAt(b[:], at); err != nil {
			return err
		}
	}
	return nil
}}

// eraseDatabase removes the database below a data root with all its copies.
var eraseDatabase = damage{"delete", func(root string) error {
	return errors.Join(os.Remove(filepath.Join(root, "meta.db")), os.RemoveAll(filepath.Join(root, "copies")))
}}

// finding is a part of what system check --json prints.
type finding struct{ Kind, Object, Problem, Heal, Repaired string }

// check runs system check and returns its findings. It fails the test when the exit code does not fit them.
func (v *victim) check(flags ...string) []finding {
	v.t.Helper()
	out, err := v.ply(context.Background(), append([]string{"system", "check", "--json"}, flags...)...)
	var report struct {
		Findings []finding
		Repaired int
	}
	if jerr := json.Unmarshal([]byte(out), &report); jerr != nil {
		v.t.Fatalf("system check %v: %v: %v", flags, err, jerr)
	}
	if (err != nil) != (len(report.Findings) > report.Repaired) {
		v.t.Errorf("system check %v: %d findings, %d repaired, exit code: %v", flags, len(report.Findings), report.Repaired, err)
	}
	for _, f := range report.Findings {
		if f.Kind == "" || f.Object == "" || f.Problem == "" || f.Heal == "" && f.Repaired == "" {
			v.t.Errorf("finding without an object, a problem or what heals it: %+v", f)
		}
	}
	return report.Findings
}

// stop ends plyd; the containers run on.
func (v *victim) stop() {
	v.t.Helper()
	if err := v.plyd.Process.Signal(syscall.SIGTERM); err != nil {
		v.t.Fatal(err)
	}
	if err := v.plyd.Wait(); err != nil {
		v.t.Errorf("plyd ended with %v:\n%s", err, v.log())
	}
}

// harmed is a plyd with an image that was pulled, one that was imported, a container that has ended and one that runs, and a
// volume.
type harmed struct {
	*victim
	pulled *remotetest.Image
	remote string
	old    string // IDs of containers
	live   string
	local  string // ID of the image base:1
}

func newHarmed(t *testing.T, name, driver string) *harmed {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatDocker, remotetest.LayerSpec{Files: []remotetest.File{{Name: "d/"}, {Name: "d/one", Data: remotetest.Noise(1, 30_000)}}},
		remotetest.LayerSpec{Files: []remotetest.File{{Name: "d/"}, {Name: "d/two", Data: remotetest.Noise(2, 30_000)}}})
	reg.Add("some/image", "1", img)
	h := &harmed{victim: newVictim(t, name, "", driver), pulled: img, remote: reg.Addr() + "/some/image:1"}
	h.start()
	h.must("pull", h.remote)
	h.must("import", "-c", `CMD ["sh"]`, rootfs, "base:1")
	h.must("save", "-o", filepath.Join(h.dir, "base.tar"), "base:1")
	h.must("run", "--name", "old", "-v", "vol:/v", "base:1", "sh", "-c", "echo said; echo data >/v/f; echo changed >/new")
	h.old = h.id("old")
	h.again()
	out, err := h.ply(context.Background(), "inspect", "-f", "{{.Id}}", "base:1")
	if err != nil {
		t.Fatal(err)
	}
	h.local = strings.TrimSpace(out)
	return h
}

func (h *harmed) id(name string) string {
	h.t.Helper()
	out, err := h.ply(context.Background(), "inspect", "-f", "{{.Id}}", name)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// again makes the container live, or makes it run again.
func (h *harmed) again() {
	h.t.Helper()
	if out, err := h.ply(context.Background(), "inspect", "-f", "{{.State.Running}}", "live"); err == nil && strings.TrimSpace(out) == "true" {
		return
	}
	_, _ = h.ply(context.Background(), "rm", "-f", "live")
	h.must("run", "-d", "--stop-signal", "KILL", "--name", "live", "-v", "vol:/v", "base:1", "sleep", "1000")
	h.live = h.id("live")
}

func (h *harmed) layer(n int, file string) string {
	chain := oci.Chain{h.pulled.Layers[0].DiffID, h.pulled.Layers[1].DiffID}
	name := h.pulled.Layers[n].DiffID.Hex()
	if slices.Contains(h.flags, "vfs") {
		name = chain[:n+1].ID().Hex()
	}
	return filepath.Join(h.data, "layers", "sha256", name, file)
}

func (h *harmed) blob(d oci.Digest) string { return filepath.Join(h.data, "blobs", "sha256", d.Hex()) }

// harm is one object and the ways in which it is damaged.
type harm struct {
	name    string
	path    func(h *harmed) string
	ways    []damage
	record  []string // bucket and key of a record, instead of a path
	quick   bool     // a check without --full finds flips too
	deep    bool     // only a check with --full finds it
	heals   bool     // --repair heals it without another command
	offline bool     // it is damaged while plyd does not run
	logged  string   // what plyd logs when it has healed it at its start
	lost    bool     // until the repair, records are missing
}

func harms(h *harmed, driver string) []harm {
	files := []damage{flipContent, shorten, erase}
	documents := []damage{flipDocument, shorten, erase}
	at := func(dir, id func(h *harmed) string, name string) func(*harmed) string {
		return func(h *harmed) string { return filepath.Join(dir(h), "containers", id(h), name) }
	}
	data, run := func(h *harmed) string { return h.data }, func(h *harmed) string { return filepath.Join(h.dir, "run") }
	old, live := func(h *harmed) string { return h.old }, func(h *harmed) string { return h.live }
	// A container that is made for one case. name is a file of it, or its log.
	worn := func(name string) func(*harmed) string {
		return func(h *harmed) string {
			_, _ = h.ply(context.Background(), "rm", "-f", "worn")
			h.must("run", "--name", "worn", "base:1", "sh", "-c", "echo first; echo second; echo changed >/new")
			id := h.id("worn")
			if name == "log" {
				return filepath.Join(h.data, "containers", id, id+"-json.log")
			}
			return filepath.Join(h.data, "containers", id, name)
		}
	}
	layers := []harm{
		{name: "config", path: func(h *harmed) string { return h.blob(oci.Digest(h.pulled.ID())) }, ways: files, quick: true},
		{name: "manifest", path: func(h *harmed) string { return h.blob(h.pulled.Digest()) }, ways: files, quick: true},
		{name: "compressed layer", path: func(h *harmed) string { return h.blob(h.pulled.Layers[0].Digest) }, ways: files[:1], heals: true},
		{name: "another compressed layer", path: func(h *harmed) string { return h.blob(h.pulled.Layers[1].Digest) }, ways: files[1:2], heals: true},
		{name: "image record", record: []string{"images", string(h.pulled.ID())}, quick: true, heals: true},
		{name: "layer record", record: []string{"layers", string(h.pulled.Layers[1].DiffID)}, quick: true, heals: true},
	}
	if driver != "erofs" { // the others differ in their layers only
		return append(layers,
			harm{name: "file of a layer", path: func(h *harmed) string { return h.layer(0, "fs/d/one") }, ways: files, deep: true},
			harm{name: "recipe", path: func(h *harmed) string { return h.layer(0, "tar-split.json.gz") }, ways: files, deep: true},
			harm{name: "meta.json", path: func(h *harmed) string { return h.layer(1, "meta.json") }, ways: documents, quick: true, heals: true},
		)
	}
	return append(layers, []harm{
		{name: "volume record", record: []string{"volumes", "vol"}, quick: true, heals: true},
		{name: "volume data", path: func(h *harmed) string { return filepath.Join(h.data, "volumes", "vol", "_data") }, ways: []damage{erase}, quick: true, heals: true},
		{name: "meta.db", path: func(h *harmed) string { return filepath.Join(h.data, "meta.db") }, ways: []damage{flipPages, shorten, erase}, offline: true, logged: "the newest records, was taken", heals: true},
		{name: "meta.db and its copies", path: func(h *harmed) string { return h.data }, ways: []damage{eraseDatabase}, offline: true, quick: true, lost: true, heals: true},
		{name: "log", path: worn("log"), ways: documents[:1], deep: true},
		{name: "lost log", path: worn("log"), ways: []damage{erase}, quick: true},
		{name: "writable layer", path: worn("rw"), ways: []damage{erase}, quick: true},
		{name: "changes of a container", path: worn("rw/upper"), ways: []damage{erase}, quick: true},
		{name: "work directory", path: worn("rw/work"), ways: []damage{erase}, quick: true, heals: true},
		{name: "exit file", path: at(data, old, "exit.json"), ways: documents[:2], quick: true, heals: true},
		{name: "shim.json", path: at(run, live, "shim.json"), ways: documents, quick: true},
		{name: "shim.pid", path: at(run, live, "shim.pid"), ways: documents, quick: true},
		{name: "init.pid", path: at(run, live, "init.pid"), ways: documents, quick: true},
		{name: "config.json", path: at(run, live, "config.json"), ways: documents, quick: true},
		{name: "shim.sock", path: at(run, live, "shim.sock"), ways: []damage{erase}, quick: true},
		{name: "hosts", path: at(data, live, "hosts"), ways: []damage{erase}, quick: true},
		{name: "hostname", path: at(data, live, "hostname"), ways: []damage{erase}, quick: true},
		{name: "network file", path: func(h *harmed) string { return h.only("run/network/" + h.live + "-*.json") }, ways: documents, quick: true, heals: true},
		{name: "layer.tar", path: func(h *harmed) string { return h.layer(0, "layer.tar") }, ways: files},
		{name: "index.erofs", path: func(h *harmed) string { return h.layer(0, "index.erofs") }, ways: files, heals: true},
		{name: "index.json", path: func(h *harmed) string { return h.layer(1, "index.json") }, ways: documents, quick: true, heals: true},
		{name: "layer.json", path: func(h *harmed) string { return h.layer(1, "layer.json") }, ways: documents, quick: true, heals: true},
	}...)
}

// TestDamage damages one object of each class in each way. plyd finds it and names what heals it; it starts all the same; a repair,
// or else the command that was named, heals it; and what was not damaged works.
func TestDamage(t *testing.T) {
	for _, driver := range []string{"erofs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			h := newHarmed(t, "harm"+driver[:1], driver)
			if found := h.check("--full"); len(found) > 0 {
				t.Fatalf("nothing is damaged yet: %+v", found)
			}
			for i, x := range harms(h, driver) {
				if x.record != nil {
					x.ways = []damage{{name: "damage"}}
				}
				if !*allDamage {
					x.ways = x.ways[i%len(x.ways):][:1]
				}
				for _, way := range x.ways {
					t.Run(strings.ReplaceAll(x.name, " ", "_")+"/"+way.name, func(t *testing.T) {
						h.t = t
						h.one(x, way)
					})
				}
			}
			h.t = t
			h.end()
		})
	}
}

// only returns the one file of a pattern below the directory.
func (h *harmed) only(pattern string) string {
	h.t.Helper()
	found, err := filepath.Glob(filepath.Join(h.dir, pattern))
	if err != nil || len(found) != 1 {
		h.t.Fatalf("%s: %v, %v, want one file", pattern, found, err)
	}
	return found[0]
}

func (h *harmed) one(x harm, way damage) {
	t := h.t
	before := len(h.log())
	if x.record == nil {
		if x.offline {
			h.stop()
		}
		if err := way.do(x.path(h)); err != nil {
			t.Fatal(err)
		}
		if x.offline {
			h.start()
		}
	} else {
		h.stop()
		metatest.Damage(t, filepath.Join(h.data, "meta.db"), x.record[0], x.record[1])
		h.start()
	}
	switch {
	case x.logged != "": // it has no finding: the start of plyd has healed it, without a loss
		if log := h.log()[before:]; !strings.Contains(log, x.logged) {
			t.Errorf("plyd does not tell:\n%s", log)
		}
	case x.quick || !x.deep && way.name != "flip":
		if found := h.check(); len(found) == 0 {
			t.Error("a quick check does not find it")
		}
	default:
		if found := h.check("--full"); len(found) == 0 {
			t.Error("a full check does not find it")
		}
	}
	// Half of the cases are healed by the plyd that has seen the damage, the others by one that starts with it.
	if x.name != "network file" && !strings.HasPrefix(way.name, "t") {
		h.stop()
		h.start()
	}
	if !x.lost {
		h.works()
	}
	left := slices.DeleteFunc(h.check("--full", "--repair"), func(f finding) bool { return f.Repaired != "" })
	if x.heals && len(left) > 0 {
		t.Errorf("a repair does not heal it: %+v", left)
	}
	for _, f := range left {
		_, args, isCommand := strings.Cut(f.Heal, "ply ")
		if !isCommand {
			t.Fatalf("no command heals it: %+v", f)
		}
		h.must(strings.Fields(args)...)
	}
	if found := h.check("--full"); len(found) > 0 {
		t.Errorf("after the repair and %+v: %+v", left, found)
	}
	h.again()
	h.works()
	h.must("save", "-o", filepath.Join(h.dir, "pulled.tar"), h.remote)
}

// works uses what was not damaged.
func (h *harmed) works() {
	h.t.Helper()
	for _, args := range [][]string{{"images"}, {"ps", "-a"}, {"run", "--rm", "--network", "none", "base:1", "echo", "works"}, {"logs", "old"}} {
		if _, err := h.ply(context.Background(), args...); err != nil {
			h.t.Error(err)
		}
	}
}
