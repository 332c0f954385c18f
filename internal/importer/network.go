package importer

import (
	"context"
	"errors"

	"ply/internal/dockerroot"
	"ply/internal/errs"
	"ply/internal/network"
)

// importNetworks imports the networks with their IDs. Those that every engine has are the ones here.
func (r *run) importNetworks(ctx context.Context) error {
	for _, n := range []string{"bridge", "host", "none"} {
		r.networks[n] = n
	}
	all, problems := r.root.Networks()
	for _, p := range problems {
		r.problem(p)
	}
	for i := range all {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := r.importNetwork(ctx, &all[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) importNetwork(ctx context.Context, n *dockerroot.Network) error {
	o := Object{Kind: dockerroot.KindNetwork, Name: n.Name, ID: n.ID}
	as, present, err := r.place(o.Kind, n.Name, func(name string) (placed, error) {
		have, err := r.to.Networks.Get(ctx, name)
		switch {
		case errors.Is(err, errs.NotFound):
			return absent, nil
		case err != nil:
			return other, err
		case have.Name != name: // an ID that begins so
			return absent, nil
		case have.ID == n.ID:
			return same, nil
		}
		return other, nil
	})
	if err != nil {
		return r.done(ctx, o, err)
	}
	o.As = as
	if !present && !r.o.DryRun {
		create := network.CreateOptions{
			Name: as, Driver: n.Driver, NoIPv4: n.NoIPv4, IPv6: n.IPv6, Internal: n.Internal, Attachable: n.Attachable, Labels: n.Labels, Options: n.Options,
			ID: n.ID, Created: n.Created,
		}
		for _, p := range n.Pools {
			create.Pools = append(create.Pools, network.Pool{Subnet: p.Subnet, Range: p.Range, Gateway: p.Gateway, Aux: p.Aux})
		}
		if _, err := r.to.Networks.Create(ctx, create); err != nil {
			return r.done(ctx, o, err)
		}
	}
	r.networks[n.Name] = as
	r.networks[n.ID] = as
	if present {
		o.State = Present
		r.report(o)
		return nil
	}
	return r.done(ctx, o, nil)
}
