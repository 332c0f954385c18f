package container_test

import (
	"context"
	"reflect"
	"slices"
	"testing"

	"ply/internal/container/spec"
	"ply/internal/network"
	"ply/internal/oci"
)

// A container tells the network to which containers it is linked and which ports it exposes, for the default network only, and when a link is removed.
func TestLinksAreToldToTheNetwork(t *testing.T) {
	w := newWorld(t)
	make := func(edit func(*spec.Spec)) oci.ContainerID {
		t.Helper()
		s := sh("sleep 600")
		s.NetworkMode = "bridge"
		edit(&s)
		id := w.create(s)
		w.start(string(id))
		return oci.ContainerID(id)
	}
	target := make(func(s *spec.Spec) {
		s.Name, s.ExposedPorts = "target", []string{"82-90", "80/tcp", "81", "85-86/tcp", "53/udp", "443"}
	})
	want := []network.PortRange{{Proto: "tcp", First: 80, Last: 90}, {Proto: "tcp", First: 443, Last: 443}, {Proto: "udp", First: 53, Last: 53}}
	if got := w.net.last.Endpoints[0].Exposed; !reflect.DeepEqual(got, want) {
		t.Errorf("the target exposes %v, want %v", got, want)
	}
	make(func(s *spec.Spec) { s.Name, s.Links = "own", []string{"target:a", "target:b"} })
	if got := w.net.last.Endpoints[0].Linked; !slices.Equal(got, []oci.ContainerID{target}) {
		t.Errorf("linked to %v, want %v", got, target)
	}
	for _, c := range []struct {
		link string
		want []oci.ContainerID
	}{{"own/a", []oci.ContainerID{target}}, {"own/b", nil}} {
		if err := w.s.Remove(context.Background(), c.link, false, false, true); err != nil {
			t.Fatal(err)
		}
		if got := w.net.linked; !slices.Equal(got, c.want) {
			t.Errorf("without %s linked to %v, want %v", c.link, got, c.want)
		}
	}
	make(func(s *spec.Spec) {
		s.NetworkMode, s.Links, s.ExposedPorts = "mine", []string{"target:a"}, []string{"80"}
	})
	if got := w.net.last.Endpoints[0]; got.Linked != nil || got.Exposed != nil {
		t.Errorf("on a network of a user linked to %v, exposed %v", got.Linked, got.Exposed)
	}
}
