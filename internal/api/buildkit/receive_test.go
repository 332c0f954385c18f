package buildkit

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// sent is a stream on which a client sends packets without listening.
type sent struct {
	packets []*types.Packet
	asked   []uint32 // files that the receiver asked for
	refused string
}

func (s *sent) Send(p *types.Packet) error {
	switch p.Type {
	case types.PACKET_REQ:
		s.asked = append(s.asked, p.ID)
	case types.PACKET_ERR:
		s.refused = string(p.Data)
	}
	return nil
}

func (s *sent) RecvMsg(m any) error {
	if len(s.packets) == 0 {
		return io.EOF
	}
	p := m.(*types.Packet)
	p.Reset()
	next := s.packets[0]
	p.Type, p.ID, p.Data, p.Stat = next.Type, next.ID, next.Data, next.Stat
	s.packets = s.packets[1:]
	return nil
}

func stat(path string, mode fs.FileMode, link string) *types.Packet {
	return &types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: path, Mode: uint32(mode), Linkname: link, Size: 1}}
}

func data(id uint32, text string) *types.Packet {
	return &types.Packet{Type: types.PACKET_DATA, ID: id, Data: []byte(text)}
}

// receiveInto runs a transfer into a new directory that has a directory and a file beside it.
func receiveInto(t *testing.T, since time.Time, packets []*types.Packet) (dir string, s *sent, err error) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "root")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(filepath.Join(top, "beside"), 0o700), os.WriteFile(filepath.Join(top, "beside/file"), []byte("ours"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if !since.IsZero() { // what an earlier transfer may have left
		if err := errors.Join(os.Symlink("../beside", filepath.Join(dir, "old")), os.Symlink("../beside/file", filepath.Join(dir, "l"))); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	s = &sent{packets: packets}
	err = (&receiver{root: root, stream: s, cancel: cancel, since: since}).receive(ctx)
	entries, listErr := os.ReadDir(filepath.Join(top, "beside"))
	text, readErr := os.ReadFile(filepath.Join(top, "beside/file"))
	all, topErr := os.ReadDir(top)
	var st unix.Stat_t
	statErr := unix.Stat(filepath.Join(top, "beside/file"), &st)
	if listErr != nil || readErr != nil || topErr != nil || statErr != nil || len(entries) != 1 || string(text) != "ours" || len(all) != 2 || st.Mode&0o7777 != 0o600 || st.Nlink != 1 {
		t.Fatalf("a client reached out of its directory: %v %q %v, mode %o, %d links", entries, text, all, st.Mode, st.Nlink)
	}
	return dir, s, err
}

// Whatever a client sends stays in its directory, and what makes no sense ends the transfer.
func TestReceiveRefuses(t *testing.T) {
	end := &types.Packet{Type: types.PACKET_STAT}
	const dir, link = fs.ModeDir | 0o755, fs.ModeSymlink | 0o777
	for name, packets := range map[string][]*types.Packet{
		"parent":              {stat("../beside/file", 0o644, ""), end},
		"parent inside":       {stat("a", dir, ""), stat("a/../../beside/x", 0o644, ""), end},
		"absolute":            {stat("/beside", 0o644, ""), end},
		"not clean":           {stat("a//b", 0o644, ""), end},
		"slash at the end":    {stat("a/", dir, ""), end},
		"dot before":          {stat("./a", 0o644, ""), end},
		"dot":                 {stat(".", dir, ""), end},
		"empty":               {stat("", dir, ""), end},
		"NUL":                 {stat("a\x00b", 0o644, ""), end},
		"long":                {stat(strings.Repeat("a/", 3000)+"a", 0o644, ""), end},
		"long name":           {stat(strings.Repeat("a", 256), 0o644, ""), end},
		"no directory":        {stat("a/b", 0o644, ""), end},
		"through a link":      {stat("l", link, "../beside"), stat("l/x", 0o644, ""), end},
		"through a file":      {stat("f", 0o644, ""), stat("f/x", 0o644, ""), end},
		"twice":               {stat("f", 0o644, ""), stat("f", link, "../beside/file"), end},
		"directory twice":     {stat("a", dir, ""), stat("a", dir, ""), end},
		"out of order":        {stat("b", 0o644, ""), stat("a", 0o644, ""), end},
		"back to a directory": {stat("a", dir, ""), stat("b", 0o644, ""), stat("a/x", 0o644, ""), end},
		"hard link out":       {stat("l", link, "../beside"), stat("m", 0o644, "l/file"), end},
		"hard link to a link": {stat("l", link, "../beside/file"), stat("m", 0o644, "l"), end},
		"hard link up":        {stat("m", 0o644, "../beside/file"), end},
		"hard link to a dir":  {stat("d", dir, ""), stat("m", 0o644, "d"), end},
		"hard link to itself": {stat("m", 0o644, "m"), end},
		"negative size":       {{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "f", Mode: 0o644, Size: -1}}, end},
		"sizes that overflow": {{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "f", Mode: 0o644, Size: 1 << 62}}, {Type: types.PACKET_STAT, Stat: &types.Stat{Path: "g", Mode: 0o644, Size: 1 << 62}}, end},
		"too large":           {{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "f", Mode: 0o644, Size: 1 << 60}}, end},
		"unknown kind":        {stat("f", fs.ModeIrregular|0o644, ""), end},
		"data too early":      {stat("f", 0o644, ""), data(0, "x"), end},
		"data nobody asked":   {stat("f", 0o644, ""), end, data(7, "x")},
		"data twice":          {stat("f", 0o644, ""), stat("g", 0o644, ""), end, data(0, ""), data(0, "x")},
		"data of a directory": {stat("d", dir, ""), stat("f", 0o644, ""), end, data(0, "x")},
		"stat in the data":    {stat("f", 0o644, ""), end, stat("g", 0o644, "")},
		"error":               {{Type: types.PACKET_ERR, Data: []byte("no such file")}},
		"error in the data":   {stat("f", 0o644, ""), end, {Type: types.PACKET_ERR, Data: []byte("gone")}},
		"request":             {{Type: types.PACKET_REQ}},
		"end":                 {stat("f", 0o644, "")},
		"end in the data":     {stat("f", 0o644, ""), end, data(0, "x")},
		"unknown packet":      {{Type: 99}},
	} {
		for _, since := range []time.Time{{}, time.Now()} {
			_, s, err := receiveInto(t, since, packets)
			if err == nil {
				t.Errorf("%s: taken", name)
			} else if s.refused == "" {
				t.Errorf("%s: the client was not told: %v", name, err)
			}
		}
	}
}

// A link that an earlier transfer left is replaced, and never followed.
func TestReceiveReplacesLinks(t *testing.T) {
	end := &types.Packet{Type: types.PACKET_STAT}
	dir, s, err := receiveInto(t, time.Now(), []*types.Packet{
		stat("l", 0o644, ""), stat("old", fs.ModeDir|0o755, ""), stat("old/file", 0o600, ""), end, data(0, "new"), data(0, ""), data(2, "two"), data(2, ""),
		{Type: types.PACKET_FIN},
	})
	if err != nil || len(s.asked) != 2 {
		t.Fatalf("%v, asked for %v", err, s.asked)
	}
	for name, want := range map[string]string{"l": "new", "old/file": "two"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// Files are asked for some at a time, so that a directory of any size takes the same memory and descriptors.
func TestReceiveAsksInTurn(t *testing.T) {
	const n = 10 * window
	var packets []*types.Packet
	for i := range n {
		packets = append(packets, stat("f"+strings.Repeat("0", 4-len(itoa(i)))+itoa(i), 0o644, ""))
	}
	packets = append(packets, &types.Packet{Type: types.PACKET_STAT})
	s := &counting{sent: sent{packets: packets}, left: n}
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	if err := (&receiver{root: root, stream: s, cancel: cancel}).receive(ctx); err != nil {
		t.Fatal(err)
	}
	if s.most > window || s.left != 0 {
		t.Errorf("%d files were asked for at a time, %d were not", s.most, s.left)
	}
}

func itoa(i int) string {
	if i < 10 {
		return string(rune('0' + i))
	}
	return itoa(i/10) + itoa(i%10)
}

// counting answers every request and counts those that wait.
type counting struct {
	sent
	most, left int
}

func (c *counting) RecvMsg(m any) error {
	if len(c.packets) == 0 && len(c.asked) > 0 {
		c.most = max(c.most, len(c.asked))
		p := m.(*types.Packet)
		p.Reset()
		p.Type, p.ID = types.PACKET_DATA, c.asked[0]
		c.asked = c.asked[1:]
		c.left--
		return nil
	}
	return c.sent.RecvMsg(m)
}

// FuzzReceive sends any packets: the receiver does not panic, and changes nothing but its directory.
func FuzzReceive(f *testing.F) {
	encode := func(packets ...*types.Packet) []byte {
		var out []byte
		for _, p := range packets {
			b, err := p.MarshalVT()
			if err != nil {
				f.Fatal(err)
			}
			out = append(binary.LittleEndian.AppendUint16(out, uint16(len(b))), b...)
		}
		return out
	}
	end := &types.Packet{Type: types.PACKET_STAT}
	f.Add(false, encode(stat("a", fs.ModeDir|0o755, ""), stat("a/f", 0o644, ""), stat("b", 0o644, "a/f"), stat("l", fs.ModeSymlink, "../beside/file"), end, data(1, "x"), data(1, ""), &types.Packet{Type: types.PACKET_FIN}))
	f.Add(true, encode(stat("l", 0o644, ""), stat("old", fs.ModeDir, ""), stat("old/file", fs.ModeSetuid, "l"), end, data(0, "x")))
	f.Add(true, encode(stat("../beside/x", 0o644, ""), stat("l", fs.ModeDir, ""), stat("l/x", fs.ModeNamedPipe, "")))
	f.Fuzz(func(t *testing.T, again bool, raw []byte) {
		var packets []*types.Packet
		for len(raw) > 2 && len(packets) < 200 {
			n := int(binary.LittleEndian.Uint16(raw))
			raw = raw[2:]
			n = min(n, len(raw))
			p := &types.Packet{}
			if p.UnmarshalVT(raw[:n]) == nil {
				if p.Stat != nil && fs.FileMode(p.Stat.Mode)&fs.ModeDevice != 0 {
					p.Stat.Mode &^= uint32(fs.ModeDevice) // no devices on the machine that runs the test
				}
				packets = append(packets, p)
			}
			raw = raw[n:]
		}
		since := time.Time{}
		if again {
			since = time.Now()
		}
		dir, _, err := receiveInto(t, since, packets)
		if err != nil && errors.Is(err, errs.DataLoss) {
			t.Error(err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Error(err)
		}
	})
}

// FuzzSolveRequest decodes any request: what comes out is a build or an error.
func FuzzSolveRequest(f *testing.F) {
	for _, r := range []*controlapi.SolveRequest{
		{Ref: "r", Session: "s", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"target": "x", "cache-imports": `[{"Type":"registry","Attrs":{"ref":"a"}}]`, "no-cache": ""}},
		{Exporters: []*controlapi.Exporter{{Type: "moby", Attrs: map[string]string{"name": "a"}}}, Entitlements: []string{"network.host", "device=x"}},
		{ExporterDeprecated: "local", Cache: &controlapi.CacheOptions{ExportRefDeprecated: "a", ImportRefsDeprecated: []string{"b"}, Imports: []*controlapi.CacheOptionsEntry{{Type: "local"}}}},
	} {
		b, err := r.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := &controlapi.SolveRequest{}
		if r.UnmarshalVT(raw) != nil {
			return
		}
		req, err := request(r)
		if err == nil && req == nil {
			t.Error("no build and no error")
		}
		if err == nil && len(req.Exports) == 0 {
			t.Error("a build without outputs would make an image")
		}
	})
}
