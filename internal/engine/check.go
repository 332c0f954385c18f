package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/namespace"
	"ply/internal/network/proxy"
	"ply/internal/oci"
	"ply/internal/store/check"
	"ply/internal/volume"
)

// Check examines the data root and the exec root, while the engine works. Only one examination runs at a time: the error's class
// is errs.Conflict for another one.
func (e *Engine) Check(ctx context.Context, o check.Options, l check.Listener) (check.Summary, error) {
	if !e.checking.TryLock() {
		return check.Summary{}, errs.New(errs.Conflict, "another check is under way")
	}
	defer e.checking.Unlock()
	r := check.New(o, l)
	networks := network.Checker{
		Service: e.Networks, Hold: e.Containers.Hold,
		Meta: e.Store.Meta, StateDir: filepath.Join(e.opts.Config.ExecRoot, "network"),
	}
	err := check.All(ctx, r, e.Store, volume.Checker{Service: e.Volumes}, e.Containers, networks)
	return r.Summary(), err
}

// Offline examines a data root that no plyd serves. It opens what the examination needs and restores no container.
type Offline struct{ Options }

// Check examines the data root. A data root that cannot be opened is a finding. The error's class is errs.Unavailable when another
// process has the data root open.
func (o Offline) Check(ctx context.Context, co check.Options, l check.Listener) (_ check.Summary, err error) {
	co.Offline = true
	e := newEngine(o.Options)
	defer func() { err = errors.Join(err, e.Close()) }()
	for _, open := range []func(context.Context) error{e.openStore, e.openImages, e.openVolumes, e.openContainers} {
		err := open(ctx)
		if errors.Is(err, errs.DataLoss) || errors.Is(err, errs.Precondition) {
			r := check.New(co, l)
			r.Report(rootFinding(e.opts.Config.DataRoot, err))
			return r.Summary(), nil
		}
		if err != nil {
			return check.Summary{}, err
		}
	}
	return e.Check(ctx, co, l)
}

// rootFinding is the finding about a data root that cannot be opened.
func rootFinding(root string, err error) check.Finding {
	f := check.Finding{Kind: "data root", Object: root, Problem: err.Error(), Heal: "use another data root, and load or pull the images there"}
	if e, ok := errors.AsType[*errs.Error](err); ok && e.Hint != "" {
		f.Problem, f.Heal = e.Msg, e.Hint
	}
	return f
}

// detached is the network of containers while no engine serves. It attaches nothing and can only remove what is left.
type detached struct{}

func (detached) Attach(context.Context, network.AttachRequest) (network.Attachment, error) {
	return network.Attachment{}, errs.New(errs.Unavailable, "no engine runs")
}

func (detached) Detach(_ context.Context, _ oci.ContainerID, netns string) error {
	return namespace.Remove(netns)
}

func (detached) Connect(context.Context, oci.ContainerID, string, network.EndpointRequest) (network.Attachment, error) {
	return network.Attachment{}, errs.New(errs.Unavailable, "no engine runs")
}

func (detached) Disconnect(context.Context, oci.ContainerID, string) (network.Attachment, error) {
	return network.Attachment{}, errs.New(errs.Unavailable, "no engine runs")
}

func (detached) Settle(context.Context, oci.ContainerID) (bool, error) { return false, nil }

func (detached) HandOver(oci.ContainerID, func([]proxy.Port, []*os.File) error) error { return nil }

func (detached) Relink(context.Context, oci.ContainerID, string, []oci.ContainerID) error { return nil }

func (detached) Rename(oci.ContainerID, string, string) error { return nil }

func (detached) Name(ref string) (string, error) {
	return "", errs.New(errs.Unavailable, "network %s: no engine runs", ref)
}

func (detached) Tables() string { return "" }

func (detached) Attached(oci.ContainerID) (network.Attachment, bool) {
	return network.Attachment{}, false
}
