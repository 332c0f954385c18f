package image

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/oci"
)

// The config at each layer of an image is what the steps of its history say, as docker's two builders write them.
func TestImpliedConfig(t *testing.T) {
	at := func(h int) *time.Time { v := time.Date(2026, 1, 1, h, 0, 0, 0, time.UTC); return &v }
	set := func(keys ...string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, k := range keys {
			m[k] = struct{}{}
		}
		return m
	}
	cfg := oci.Config{
		Architecture: "amd64", OS: "linux", Created: at(20), Container: "c", Comment: "of the last step", DockerVersion: "20.10",
		Config: oci.RunConfig{
			Env: []string{"PATH=/usr/bin", "A=2 b", "B=x=y C=z", "D="}, Cmd: []string{"last"}, Entrypoint: []string{"/entry", "-v"}, User: "web", WorkingDir: "/srv/app",
			ExposedPorts: set("80/tcp", "53/udp", "9000/tcp"), Volumes: set("/data", "/log"), Labels: map[string]string{"from": "last", "only.later": "1", "given": "0"},
			Shell: []string{"/bin/bash", "-c"}, StopSignal: "SIGQUIT", OnBuild: []string{"RUN one", "RUN two"}, Healthcheck: &oci.Healthcheck{Test: []string{"CMD", "true"}},
			StopTimeout: new(int),
		},
		RootFS: oci.RootFS{Type: "layers", DiffIDs: oci.Chain{"sha256:1", "sha256:2", "sha256:3", "sha256:4"}},
		History: []oci.History{
			{Created: at(1), CreatedBy: "/bin/sh -c #(nop) ADD file:1 in / "},
			{Created: at(2), CreatedBy: `/bin/sh -c #(nop)  CMD ["bash" "-l"]`, EmptyLayer: true},
			{Created: at(3), CreatedBy: "/bin/sh -c #(nop)  ENV A=1 a B=x=y C=z", EmptyLayer: true},
			{Created: at(4), CreatedBy: "/bin/sh -c #(nop)  LABEL from=first line", EmptyLayer: true},
			{Created: at(5), CreatedBy: "/bin/sh -c #(nop)  EXPOSE map[80/tcp:{} 53/udp:{}]", EmptyLayer: true},
			{Created: at(6), CreatedBy: "/bin/sh -c #(nop)  VOLUME [/data]", EmptyLayer: true},
			{Created: at(7), CreatedBy: "|1 ARG=x /bin/sh -c apt-get install USER root"},
			{Created: at(8), CreatedBy: "USER root", EmptyLayer: true},
			{Created: at(9), CreatedBy: "WORKDIR /srv # buildkit"},
			{Created: at(10), CreatedBy: `ENTRYPOINT ["/entry" "-v"]`, EmptyLayer: true},
			{Created: at(11), CreatedBy: "SHELL [/bin/bash -c]", EmptyLayer: true},
			{Created: at(12), CreatedBy: "STOPSIGNAL SIGTERM", EmptyLayer: true},
			{Created: at(13), CreatedBy: "ONBUILD RUN one", EmptyLayer: true},
			{Created: at(14), CreatedBy: "RUN /bin/bash -c make # buildkit"},
			{Created: at(15), CreatedBy: "ENV A=2 b D=", EmptyLayer: true},
			{Created: at(16), CreatedBy: "LABEL from=last only.later=1", EmptyLayer: true},
			{Created: at(17), CreatedBy: "EXPOSE 9000", EmptyLayer: true},
			{Created: at(17), CreatedBy: `VOLUME ["/log"]`, EmptyLayer: true},
			{Created: at(17), CreatedBy: "USER web", EmptyLayer: true},
			{Created: at(17), CreatedBy: "WORKDIR /srv/app", EmptyLayer: true},
			{Created: at(18), CreatedBy: "STOPSIGNAL SIGQUIT", EmptyLayer: true},
			{Created: at(18), CreatedBy: "HEALTHCHECK &{[\"CMD\" \"true\"] \"0s\"}", EmptyLayer: true},
			{Created: at(18), CreatedBy: "ONBUILD RUN two", EmptyLayer: true},
			{Created: at(19), CreatedBy: `CMD ["last"]`, EmptyLayer: true},
		},
	}
	first := oci.RunConfig{
		Env: []string{"PATH=/usr/bin", "A=1 a", "B=x=y C=z"}, Cmd: []string{"bash", "-l"}, ExposedPorts: set("80/tcp", "53/udp"), Volumes: set("/data"),
		Labels: map[string]string{"from": "first line", "given": "0"}, Shell: []string{"/bin/bash", "-c"}, StopTimeout: new(int), OnBuild: []string{},
	}
	first.Entrypoint, first.Shell = nil, nil
	third := first
	third.User, third.WorkingDir, third.Entrypoint, third.Shell, third.StopSignal, third.OnBuild = "root", "/srv", []string{"/entry", "-v"}, []string{"/bin/bash", "-c"}, "SIGTERM", []string{"RUN one"}
	third.Cmd = nil // reset by ENTRYPOINT
	second := first
	second.User = "root"
	for n, want := range map[int]oci.RunConfig{1: first, 2: second, 3: third, 4: cfg.Config} {
		got := implied(cfg, n)
		want := oci.Config{Architecture: "amd64", OS: "linux", Config: want, RootFS: oci.RootFS{Type: "layers", DiffIDs: cfg.RootFS.DiffIDs[:n]}}
		steps := map[int]int{1: 6, 2: 8, 3: 13, 4: 24}[n]
		want.History = cfg.History[:steps]
		want.Created = cfg.History[steps-1].Created
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d layers (-want +got):\n%s", n, d)
		}
	}
	if cfg.Config.User != "web" || len(cfg.Config.ExposedPorts) != 3 || len(cfg.Config.Labels) != 3 {
		t.Errorf("the config itself was changed: %+v", cfg.Config)
	}
}

// A history that says nothing about the layers, or nothing about the config, leaves the config as it is.
func TestImpliedConfigWithoutHistory(t *testing.T) {
	run := oci.RunConfig{Cmd: []string{"sh"}, Env: []string{"A=1"}, User: "u", Labels: map[string]string{"a": "b"}}
	for name, history := range map[string][]oci.History{
		"none": nil, "too short": {{CreatedBy: "RUN a"}}, "of tools": {{CreatedBy: "bazel build"}, {CreatedBy: "bazel build"}},
		"too long": {{CreatedBy: "RUN a"}, {CreatedBy: "RUN b"}, {CreatedBy: "RUN c"}, {CreatedBy: "USER u", EmptyLayer: true}},
	} {
		cfg := oci.Config{OS: "linux", Config: run, RootFS: oci.RootFS{DiffIDs: oci.Chain{"sha256:1", "sha256:2"}}, History: history}
		if got := implied(cfg, 1); cmp.Diff(run, got.Config, cmp.Transformer("empty", func(l []string) int { return len(l) })) != "" || len(got.RootFS.DiffIDs) != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
