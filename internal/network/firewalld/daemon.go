package firewalld

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Names of firewalld's interface (firewalld.dbus(5)).
const (
	service    = "org.fedoraproject.FirewallD1"
	object     = "/org/fedoraproject/FirewallD1"
	configPath = object + "/config"
)

// daemon is the firewalld that owns the name on the bus.
type daemon struct {
	bus      *bus
	log      *slog.Logger
	owner    string // its unique name on the bus; "" = it does not run
	foreign  bool   // it runs in another network namespace
	synced   bool   // it has the zone, and no announcement said otherwise since
	reloaded bool   // this package made it reload although it had added nothing
}

// find looks for firewalld.
func (f *daemon) find(ctx context.Context) error {
	f.owner, f.foreign, f.reloaded = "", false, false
	owner, err := f.bus.owner(ctx, service)
	if err != nil || owner == "" {
		return err
	}
	pid, err := f.bus.process(ctx, owner)
	if err != nil {
		return err
	}
	if f.foreign = elsewhere(pid); f.foreign {
		f.log.Info("firewalld runs in another network namespace, and is left alone", "pid", pid)
	}
	f.owner = owner
	f.bus.expect(owner)
	return nil
}

// elsewhere reports whether a process is in another network namespace than this one. A process that is not seen here counts as one that is not.
func elsewhere(pid uint32) bool {
	its, err := os.Readlink("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/ns/net")
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/thread-self/ns/net") // the first thread of a process may be in another one for good
	return err == nil && its != ours
}

// prepare makes the zone and the policy if firewalld does not have them, and returns the interfaces of the zone.
func (f *daemon) prepare(ctx context.Context) ([]string, error) {
	hasZone, hasPolicy, err := f.has(ctx)
	if err != nil {
		return nil, err
	}
	if !hasZone || !hasPolicy {
		if err := f.define(ctx, hasZone, hasPolicy); err != nil {
			return nil, err
		}
	}
	return f.names(ctx, "zone.getInterfaces", ZoneName)
}

// has reports whether the zone and the policy are in effect.
func (f *daemon) has(ctx context.Context) (zone, policy bool, err error) {
	zones, err := f.names(ctx, "zone.getZones")
	if err != nil {
		return false, false, err
	}
	policies, err := f.names(ctx, "policy.getPolicies")
	if err != nil {
		return false, false, err
	}
	return slices.Contains(zones, ZoneName), slices.Contains(policies, policyName), nil
}

// define adds the zone and the policy to the permanent configuration and puts it into effect.
func (f *daemon) define(ctx context.Context, hasZone, hasPolicy bool) error {
	added := false
	add := func(method, name string, settings map[string]dbus.Variant) error {
		_, err := f.bus.call(ctx, f.owner, configPath, service+".config."+method, name, settings)
		if code(err) == "NAME_CONFLICT" { // another engine has added it, or it waits for a reload
			return nil
		}
		added = added || err == nil
		return err
	}
	if !hasZone {
		err := add("addZone2", ZoneName, map[string]dbus.Variant{
			"short": dbus.MakeVariant("ply"), "description": dbus.MakeVariant("The bridges of ply. What passes is decided by ply's own rules."), "target": dbus.MakeVariant("ACCEPT"),
		})
		if err != nil {
			return err
		}
	}
	if !hasPolicy {
		// A network that is routed is reached at the containers' own addresses, from any zone.
		err := add("addPolicy", policyName, map[string]dbus.Variant{
			"short": dbus.MakeVariant("ply forwarding"), "description": dbus.MakeVariant("What is forwarded to the bridges of ply. What passes is decided by ply's own rules."),
			"target": dbus.MakeVariant("ACCEPT"), "ingress_zones": dbus.MakeVariant([]string{"ANY"}), "egress_zones": dbus.MakeVariant([]string{ZoneName}),
		})
		if err != nil {
			return err
		}
	}
	if !added && f.reloaded {
		if hasZone { // only the policy is missing, which networks with addresses translated by the host do without
			return nil
		}
		return fmt.Errorf("firewalld does not show the zone %s, although it is in its permanent configuration", ZoneName)
	}
	f.reloaded = f.reloaded || !added
	if _, err := f.bus.call(ctx, f.owner, object, service+".reload"); err != nil {
		return err
	}
	f.log.Info("firewalld has a zone for the bridges of ply", "zone", ZoneName, "policy", policyName)
	hasZone, _, err := f.has(ctx)
	if err == nil && !hasZone {
		err = fmt.Errorf("firewalld does not show the zone %s after a reload", ZoneName)
	}
	return err
}

// add puts a bridge into the zone. One that an administrator put into another zone stays there.
func (f *daemon) add(ctx context.Context, bridge string) error {
	_, err := f.bus.call(ctx, f.owner, object, service+".zone.addInterface", ZoneName, bridge)
	switch code(err) {
	case "ZONE_ALREADY_SET":
		return nil
	case "ZONE_CONFLICT", "INVALID_INTERFACE":
		f.log.Info("firewalld keeps a bridge out of the zone", "zone", ZoneName, "bridge", bridge, "err", err)
		return nil
	}
	return err
}

// remove takes a bridge out of the zone. One that firewalld keeps is in nobody's way, and is gone with its next start: firewalld 1.3 fails to remove the
// last interface of a zone on some kernels.
func (f *daemon) remove(ctx context.Context, bridge string) error {
	_, err := f.bus.call(ctx, f.owner, object, service+".zone.removeInterface", ZoneName, bridge)
	switch c := code(err); c {
	case "":
		return err
	case "UNKNOWN_INTERFACE", "ZONE_CONFLICT", "INVALID_ZONE", "INVALID_INTERFACE":
	default:
		f.log.Info("firewalld keeps a removed bridge in the zone until it starts again", "zone", ZoneName, "bridge", bridge, "code", c)
	}
	return nil
}

// names calls a method that returns a list of names.
func (f *daemon) names(ctx context.Context, method string, args ...any) ([]string, error) {
	body, err := f.bus.call(ctx, f.owner, object, service+"."+method, args...)
	if err != nil {
		return nil, err
	}
	if len(body) == 1 {
		if list, ok := body[0].([]string); ok {
			return list, nil
		}
	}
	return nil, fmt.Errorf("firewalld: %s: the answer is no list of names", method)
}

// code returns the code of an error of firewalld, such as ZONE_CONFLICT; "" for other errors. All have one name, and the code is the first word of the text.
func code(err error) string {
	var e dbus.Error
	if !errors.As(err, &e) || e.Name != service+".Exception" || len(e.Body) == 0 {
		return ""
	}
	text, _ := e.Body[0].(string)
	word, _, _ := strings.Cut(text, ":")
	return word
}
