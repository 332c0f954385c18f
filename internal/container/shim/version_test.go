package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/errs"
	"ply/internal/network/proxy"
	"ply/internal/procid"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

var moment = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)

// One value of each file and message, with every field set.
var (
	aConfig = Config{ID: "c1", Bundle: "/run/b", StateDir: "/run/s", Runtime: "/usr/bin/crun", Tty: true, Stdin: true, StdinOnce: true, Height: 24, Width: 80,
		Log: Log{Driver: "json-file", Path: "/var/l", MaxSize: 10, MaxFiles: 3, Compress: true, Volatile: true,
			Attributes: map[string]string{"tag": "t"}, Buffer: 11, Forward: &aForward}, ExitPath: "/var/exit.json",
		Volatile: true, Run: "r1", Restore: true, Started: moment}
	aForward = Forward{Program: "/usr/bin/ply-log", Options: map[string]string{"syslog-format": "rfc5424"}, NonBlocking: true, Buffer: 20, NoCache: true, Tag: "t",
		Attributes: map[string]string{"k": "v"}, Container: LoggedContainer{ID: "c1", Name: "n", ImageID: "i", ImageName: "busybox", Command: "sh", Created: moment}}
	anIdentity = Identity{Boot: "b0", PID: 7, Start: 99}
	anExit     = Exit{Code: 137, OOMKilled: true, At: moment}
	aStats     = StatsReply{Read: moment, CPUTotal: 1, CPUUser: 2, CPUSystem: 3, PerCPU: []uint64{4}, Throttled: [3]uint64{5, 6, 7}, MemoryUsage: 8, MemoryMax: 9,
		MemoryLimit: 10, MemoryStats: map[string]uint64{"cache": 11}, MemoryFailcnt: 12, PidsCurrent: 13, PidsLimit: 14,
		Blkio: []BlkioEntry{{8, 1, "Read", 15}}}
	aState = StateReply{Status: "stopped", PID: 5, Exit: &Exit{Code: 1, OOMKilled: true, At: moment}}
)

func TestFilesKeepTheirForm(t *testing.T) {
	checkRecord(t, "shim.json", aConfig)
	checkRecord(t, "core/identity.json", anIdentity)
	checkRecord(t, "core/exit.json", anExit)
	checkRecord(t, "exit.json", ExitRecord{anExit, "r1"})
}

func checkRecord[T any](t *testing.T, name string, v T) {
	t.Helper()
	recordtest.Filled(t, v)
	data, err := record.Marshal(Version, v)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, name, data)
	recordtest.Decodes(t, name, Version, v)
}

// Every operation has a golden file of its request, and every result one of its response's body.
func TestMessagesKeepTheirForm(t *testing.T) {
	args := map[Op]any{
		OpKill:   KillArgs{Signal: 9, All: true},
		OpResize: ResizeArgs{Height: 24, Width: 80},
		OpExec:   ExecArgs{ID: "e1", Process: json.RawMessage(`{"args":["true"]}`), Stdin: true, Detach: true},
		OpAttach: AttachArgs{Stdin: true, Stdout: true, Stderr: true, Resume: "a1", From: &Position{Stdout: 7, Stderr: 8}},
		OpNames:  ResolveArgs{Netns: "/run/n", Tables: "/run/t", Container: "c1", Servers: []string{"192.0.2.1"}, Inside: true},
		OpPorts: PortsArgs{Ports: []proxy.Port{{
			Proto: "tcp", Host: netip.MustParseAddrPort("[::]:8080"), Target: netip.MustParseAddrPort("172.17.0.2:80"), Carry: true, Socket: true,
		}}},
		OpCheckpoint: CheckpointArgs{Name: "first", Temporary: ".tmp-first", Work: "/var/w", LeaveRunning: true},
		OpRestore:    RestoreArgs{Work: "/var/w"},
		OpUpdate:     UpdateArgs{Resources: json.RawMessage(`{"pids":{"limit":5}}`)},
	}
	results := map[Op]any{OpState: aState, OpAttach: AttachReply{Resumes: true, Stdout: 7, Stderr: 8}, OpWait: anExit, OpStats: aStats, OpPids: []int{5, 6}}
	for _, op := range operations(t) {
		dir := ""
		if op.isCore() {
			dir = "core/"
		}
		req := Request{Version: Version, Op: op, Process: "e1"}
		if a := args[op]; a != nil {
			recordtest.Filled(t, a)
			req.Args = marshal(t, a)
		}
		checkMessage(t, dir+"request-"+string(op)+".json", req)
		if r := results[op]; r != nil {
			recordtest.Filled(t, r)
			checkMessage(t, dir+"response-"+string(op)+".json", Response{Version: Version, Body: marshal(t, r)})
		}
	}
	checkMessage(t, "core/response-error.json", Response{Version: Version, Error: "process has ended", Class: ClassGone})
}

func checkMessage(t *testing.T, name string, v any) {
	t.Helper()
	var frame bytes.Buffer
	if err := WriteFrame(&frame, v); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, frame.Bytes()[4:], "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	name = filepath.Join("testdata", name)
	if flag.Lookup("update-records").Value.String() == "true" {
		if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("%s: a message has changed its form\ngot:\n%s\nwant:\n%s", name, &got, want)
	}
}

// operations returns the operations that protocol.go declares.
func operations(t *testing.T) (ops []Op) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "protocol.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Op" {
				name, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, Op(name))
			}
		}
		return true
	})
	if len(ops) < 13 {
		t.Fatalf("operations found in protocol.go: %q", ops)
	}
	return ops
}

func marshal(t *testing.T, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes of frames and chunks are part of the core.
func TestFramesAndChunksKeepTheirBytes(t *testing.T) {
	var b bytes.Buffer
	if err := WriteFrame(&b, Response{}); err != nil || b.String() != "\x00\x00\x00\x02{}" {
		t.Errorf("frame %q, %v", b.String(), err)
	}
	if h := AppendChunkHeader(nil, Stderr, 0x01020304); string(h) != "\x02\x00\x00\x00\x01\x02\x03\x04" {
		t.Errorf("chunk header % x", h)
	}
	if Stdin != 0 || Stdout != 1 || Stderr != 2 || Ended != 3 {
		t.Error("a stream has another number")
	}
}

// testdata/unversioned holds what the builds before this version of the protocol wrote: the same names, no version.
func TestUnversionedFilesAndMessages(t *testing.T) {
	old := aConfig
	old.Run, old.Started, old.Restore, old.Volatile, old.Log.Volatile = "", time.Time{}, false, false, false
	old.Log.Attributes, old.Log.Buffer, old.Log.Forward = nil, 0, nil
	unversioned(t, "config", old)
	unversioned(t, "identity", anIdentity)
	unversioned(t, "exit", anExit)
	unversionedMessage(t, "stats", aStats)
	unversionedMessage(t, "state", aState)
	unversionedMessage(t, "request", Request{Op: OpKill, Process: "e1", Args: json.RawMessage(`{"signal":9}`)})
	unversionedMessage(t, "response", Response{Error: "no", Class: ClassGone, Body: json.RawMessage(`{}`)})
}

func unversioned[T any](t *testing.T, name string, want T) {
	t.Helper()
	got, h, err := readFile[T](filepath.Join("testdata/unversioned", name+".json"))
	if err != nil || !reflect.DeepEqual(got, want) || h.Version != 1 {
		t.Errorf("%s: %+v of version %d, %v", name, got, h.Version, err)
	}
}

func unversionedMessage[T any](t *testing.T, name string, want T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/unversioned", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var got T
	if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, %v", name, got, err)
	}
	// What this build sends is, but for the version, what an older build knows.
	if back := marshal(t, got); string(back) != strings.TrimSpace(string(data)) {
		t.Errorf("%s: encoded again %s", name, back)
	}
}

// newerShim is a bundle whose shim speaks version 3 and answers every request with the response; got receives the requests.
func newerShim(t *testing.T, resp Response) (bundle string, got chan Request) {
	t.Helper()
	dir := t.TempDir()
	self, err := procid.Self()
	if err != nil {
		t.Fatal(err)
	}
	id := string(marshal(t, Identity(self)))
	for name, text := range map[string]string{
		ConfigFile: `{"version":3,"writer":"9.8.7","id":"c1","stateDir":"/s","exitPath":` + strconv.Quote(filepath.Join(dir, ExitFile)) + `,"log":"elsewhere","later":[1]}`,
		PidFile:    `{"version":3,"writer":"9.8.7","later":{},` + id[1:],
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	got = make(chan Request, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if req, err := ReadFrame[Request](conn); err == nil {
				got <- req
				_ = WriteFrame(conn, resp)
			}
			_ = conn.(*net.UnixConn).Close()
		}
	}()
	return dir, got
}

// With a newer shim the client uses the core only, and every other operation names the shim's version and release.
func TestNewerShimKeepsTheCore(t *testing.T) {
	dir, got := newerShim(t, Response{Version: 3, Body: json.RawMessage(`{"status":"running","pid":5,"code":6,"at":"2026-03-04T05:06:07Z","later":1}`)})
	c, err := Connect(dir)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	if c.Config().ID != "c1" || c.Config().ExitPath != filepath.Join(dir, ExitFile) || c.Newer() == nil {
		t.Errorf("client: %+v, newer %v", c.Config(), c.Newer())
	}
	ctx := t.Context()
	if st, err := c.State(ctx, ""); err != nil || st.Status != "running" || st.PID != 5 {
		t.Errorf("state: %+v, %v", st, err)
	}
	if err := c.Kill(ctx, "", KillArgs{Signal: 15}); err != nil {
		t.Errorf("kill: %v", err)
	}
	if e, err := c.Wait(ctx, ""); err != nil || e.Code != 6 {
		t.Errorf("wait: %+v, %v", e, err)
	}
	for range 3 {
		if req := <-got; req.Version != Version {
			t.Errorf("%s: a request of version %d, want this build's", req.Op, req.Version)
		}
	}
	refused := map[string]error{
		"start": c.Start(ctx, ""), "resize": c.Resize(ctx, "", 1, 1), "pause": c.Pause(ctx), "resume": c.Resume(ctx),
		"exec": c.Exec(ctx, "e", &specs.Process{}, ExecOptions{}), "update": c.Update(ctx, &specs.LinuxResources{}),
		"names": c.Resolve(ctx, ResolveArgs{}), "ports": c.Publish(ctx, nil, nil),
		"checkpoint": c.Checkpoint(ctx, os.Stdin, CheckpointArgs{}), "restore": c.Restore(ctx, os.Stdin, RestoreArgs{}),
	}
	_, refused["stats"] = c.Stats(ctx)
	_, refused["pids"] = c.Pids(ctx)
	_, refused["attach"] = c.Attach(ctx, "", AttachArgs{})
	if len(refused)+4 != len(operations(t)) {
		t.Errorf("%d operations are tried, of %d", len(refused)+4, len(operations(t)))
	}
	for name, err := range refused {
		if !errors.Is(err, errs.Unimplemented) {
			t.Errorf("%s: %v, want errs.Unimplemented", name, err)
			continue
		}
		for _, part := range []string{"c1", "version 3", "ply 9.8.7", "up to 2", "stopped, killed and removed"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", name, err, part)
			}
		}
	}
	if len(got) > 0 {
		t.Errorf("the shim got %s", (<-got).Op)
	}
}

func TestNewerFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		ConfigFile: `{"version":3,"writer":"9.8.7","id":"c1","exitPath":"/e"}`,
		InitFile:   `{"version":3,"writer":"9.8.7","boot":"b0","pid":7,"start":99,"later":1}`,
		ExitFile:   `{"version":3,"writer":{"later":1},"code":137,"oomKilled":true,"at":"2026-03-04T05:06:07.000000089Z","later":1}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := ReadConfig(dir)
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "version 3, written by ply 9.8.7") {
		t.Errorf("configuration for a shim to run: %v", err)
	}
	if cfg, err := ReadConfigCore(dir); err != nil || cfg.ID != "c1" || cfg.ExitPath != "/e" {
		t.Errorf("core of the configuration: %+v, %v", cfg, err)
	}
	if id, err := ReadIdentity(filepath.Join(dir, InitFile)); err != nil || id != anIdentity {
		t.Errorf("identity: %+v, %v", id, err)
	}
	if e, err := ReadExit(filepath.Join(dir, ExitFile)); err != nil || e.Exit != anExit {
		t.Errorf("exit file: %+v, %v", e, err)
	}
}

// A shim of version 1 would ignore further limits, so they are not sent to it.
func TestUpdateOfAnOlderShim(t *testing.T) {
	dir, got := newerShim(t, Response{})
	limit, weight := int64(64<<20), uint16(500)
	known := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Cpus: "0"}, Pids: &specs.LinuxPids{Limit: &limit},
		BlockIO: &specs.LinuxBlockIO{Weight: &weight}}
	rate := []specs.LinuxThrottleDevice{{Rate: 5}}
	idle := int64(1)
	for name, r := range map[string]*specs.LinuxResources{
		"a rate of a device": {BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: rate}},
		"an idle CPU":        {CPU: &specs.LinuxCPU{Idle: &idle}},
		"a unified limit":    {Unified: map[string]string{"memory.high": "1"}},
	} {
		for version, want := range map[int]error{0: errs.Unimplemented, 1: errs.Unimplemented, 2: nil} {
			c := &Client{cfg: Config{ID: "c1", Bundle: dir}, peer: record.Header{Version: version}}
			err := c.Update(t.Context(), r)
			if (want == nil) != (err == nil) || want != nil && !errors.Is(err, want) {
				t.Errorf("%s, version %d: %v", name, version, err)
			}
			if want == nil {
				<-got
			}
			if err := c.Update(t.Context(), known); err != nil {
				t.Errorf("known limits, version %d: %v", version, err)
			}
			if req := <-got; req.Version != max(1, version) {
				t.Errorf("a shim of version %d got a request of version %d", version, req.Version)
			}
		}
	}
	if len(got) > 0 {
		t.Errorf("the shim got %s", (<-got).Op)
	}
}

// A shim that does not know an operation says so, and the error names the way out.
func TestOperationThatTheShimDoesNotKnow(t *testing.T) {
	dir, _ := newerShim(t, Response{Version: 1, Error: `unknown request "later"; this shim is of ply 0.1.0`, Class: ClassUnsupported})
	c := &Client{cfg: Config{ID: "c1", Bundle: dir}}
	err := c.Pause(t.Context())
	if !errors.Is(err, errs.Unimplemented) || !strings.Contains(err.Error(), "ply 0.1.0") || !strings.Contains(err.Error(), "Start the container again") {
		t.Errorf("%v", err)
	}
}
