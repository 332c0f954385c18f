package runspec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/volume"
)

// Requests are answered by the driver that they name or whose capabilities they ask for.
func TestDeviceRequests(t *testing.T) {
	gpu := [][]string{{"gpu"}}
	empty, nvidia, amd, path := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	file := func(dir, kind string, names ...string) {
		for i, n := range names {
			names[i] = `{"name":"` + n + `","containerEdits":{"env":["GPU_` + n + `=` + kind + `"]}}`
		}
		text := `{"cdiVersion":"0.6.0","kind":"` + kind + `","devices":[` + strings.Join(names, ",") + `]}`
		if err := os.WriteFile(filepath.Join(dir, "gpu.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file(nvidia, "nvidia.com/gpu", "0", "1", "all")
	file(amd, "amd.com/gpu", "0", "all")
	hook := filepath.Join(path, nvidiaHook)
	if err := os.WriteFile(hook, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dirs []string
		path string
		req  spec.DeviceRequest
		want string // variables, or the error
	}{
		"all":              {[]string{nvidia}, "", spec.DeviceRequest{Count: -1, Capabilities: gpu}, "GPU_all=nvidia.com/gpu"},
		"one":              {[]string{nvidia}, "", spec.DeviceRequest{Count: 1, Capabilities: gpu}, "GPU_0=nvidia.com/gpu"},
		"two":              {[]string{nvidia}, "", spec.DeviceRequest{Count: 2, Capabilities: gpu}, "GPU_0=nvidia.com/gpu GPU_1=nvidia.com/gpu"},
		"three of two":     {[]string{nvidia}, "", spec.DeviceRequest{Count: 3, Capabilities: gpu}, "unresolvable CDI devices nvidia.com/gpu=2"},
		"by number":        {[]string{nvidia}, "", spec.DeviceRequest{IDs: []string{"1"}, Capabilities: gpu}, "GPU_1=nvidia.com/gpu"},
		"by name":          {[]string{nvidia}, "", spec.DeviceRequest{IDs: []string{"nvidia.com/gpu=1"}, Capabilities: gpu}, "GPU_1=nvidia.com/gpu"},
		"named driver":     {[]string{nvidia, amd}, "", spec.DeviceRequest{Driver: "amd", Count: -1}, "GPU_all=amd.com/gpu"},
		"either":           {[]string{amd, nvidia}, "", spec.DeviceRequest{Count: -1, Capabilities: gpu}, "GPU_all=nvidia.com/gpu"},
		"other vendor":     {[]string{amd}, "", spec.DeviceRequest{Count: -1, Capabilities: gpu}, "GPU_all=amd.com/gpu"},
		"capabilities":     {[]string{amd, nvidia}, "", spec.DeviceRequest{Count: -1, Capabilities: [][]string{{"gpu", "time travel"}, {"gpu", "amd"}}}, "GPU_all=amd.com/gpu"},
		"nobody's":         {[]string{amd, nvidia}, "", spec.DeviceRequest{Count: -1, Capabilities: [][]string{{"gpu", "tpu"}}}, `could not select device driver "" with capabilities: [[gpu tpu]]`},
		"no devices":       {[]string{empty}, "", spec.DeviceRequest{Count: -1, Capabilities: gpu}, `could not select device driver "" with capabilities: [[gpu]]`},
		"switched off":     {nil, "", spec.DeviceRequest{Driver: "cdi", IDs: []string{"nvidia.com/gpu=0"}}, `could not select device driver "cdi" with capabilities: []`},
		"absent driver":    {[]string{nvidia}, "", spec.DeviceRequest{Driver: "fpga", Capabilities: gpu}, `could not select device driver "fpga" with capabilities: [[gpu]]`},
		"count and ID":     {[]string{nvidia}, "", spec.DeviceRequest{Count: 1, IDs: []string{"0"}, Capabilities: gpu}, "cannot set both Count and DeviceIDs on device request"},
		"CDI":              {[]string{amd, nvidia}, "", spec.DeviceRequest{Driver: "cdi", IDs: []string{"nvidia.com/gpu=0", "amd.com/gpu=0"}}, "GPU_0=amd.com/gpu"},
		"CDI, count":       {[]string{nvidia}, "", spec.DeviceRequest{Driver: "cdi", Count: 1}, "unexpected count in CDI device request"},
		"CDI, options":     {[]string{nvidia}, "", spec.DeviceRequest{Driver: "cdi", IDs: []string{"nvidia.com/gpu=0"}, Options: map[string]string{"a": "b"}}, "unexpected options in CDI device request"},
		"CDI, no device":   {[]string{nvidia}, "", spec.DeviceRequest{Driver: "cdi"}, ""},
		"hook":             {nil, path, spec.DeviceRequest{Count: -1, Capabilities: [][]string{{"gpu", "utility", "compute"}}}, "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility,compute"},
		"hook, two":        {[]string{empty}, path, spec.DeviceRequest{Count: 2, Capabilities: gpu}, "NVIDIA_VISIBLE_DEVICES=0,1"},
		"hook, none":       {[]string{empty}, path, spec.DeviceRequest{Capabilities: gpu}, "NVIDIA_VISIBLE_DEVICES=void"},
		"hook and devices": {[]string{nvidia}, path, spec.DeviceRequest{Count: -1, Capabilities: gpu}, "GPU_all=nvidia.com/gpu"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", tc.path)
			in := input(t)
			in.CDIDirs, in.Spec.DeviceRequests = tc.dirs, []spec.DeviceRequest{tc.req}
			plain, _, err := Build(input(t))
			if err != nil {
				t.Fatal(err)
			}
			s, _, err := Build(in)
			if err != nil {
				if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.want) || tc.want == "" {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			if got := strings.Join(s.Process.Env[len(plain.Process.Env):], " "); got != tc.want {
				t.Errorf("added %q, want %q", got, tc.want)
			}
			hooked := s.Hooks != nil && slices.ContainsFunc(s.Hooks.Prestart, func(h specs.Hook) bool { return h.Path == hook }) //nolint:staticcheck // see nvidia
			if want := strings.HasPrefix(tc.want, "NVIDIA_"); hooked != want {
				t.Errorf("hook is there: %v, want %v", hooked, want)
			}
		})
	}
}

// A mount of the user is kept where a device has one too, and mounts of devices come after those in which they lie.
func TestMountsOfDevices(t *testing.T) {
	dir := t.TempDir()
	text := `{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"mounts":[{"hostPath":"/h1","containerPath":"/data/"},{"hostPath":"/h2","containerPath":"/data/lib"},{"hostPath":"/h3","containerPath":"/top"}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	in := input(t)
	in.CDIDirs, in.Spec.DeviceRequests = []string{dir}, []spec.DeviceRequest{{Driver: "cdi", IDs: []string{"a.b/c=x"}}}
	in.Mounts = []volume.Mount{{Type: "bind", Source: "/mine", Target: "/data", RW: true}}
	s, _, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Source, "/h") || m.Source == "/mine" {
			got = append(got, m.Source+" "+m.Destination)
		}
	}
	if diff := cmp.Diff([]string{"/mine /data", "/h3 /top", "/h2 /data/lib"}, got); diff != "" {
		t.Error(diff)
	}
}
