package buildkit

import (
	"errors"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"

	"ply/internal/errs"
)

// A client of BuildKit's API is granted what it names, and nothing else.
func TestEntitlementsOfRequests(t *testing.T) {
	for _, c := range []struct {
		names          []string
		host, insecure bool
		err            error
	}{
		{nil, false, false, nil},
		{[]string{"network.host"}, true, false, nil},
		{[]string{"security.insecure"}, false, true, nil},
		{[]string{"security.insecure", "network.host"}, true, true, nil},
		{[]string{"network"}, false, false, errs.Unimplemented},
		{[]string{"network.host", "device=all"}, false, false, errs.Unimplemented},
		{[]string{"Network.Host"}, false, false, errs.Unimplemented},
		{[]string{""}, false, false, errs.Unimplemented},
	} {
		req, err := request(&controlapi.SolveRequest{Ref: "r", Session: "s", Frontend: "dockerfile.v0", Entitlements: c.names})
		if !errors.Is(err, c.err) {
			t.Errorf("%q: %v, want %v", c.names, err, c.err)
		}
		if err == nil && (req.HostNetwork != c.host || req.Insecure != c.insecure) {
			t.Errorf("%q grants host network %v and all rights %v", c.names, req.HostNetwork, req.Insecure)
		}
	}
}
