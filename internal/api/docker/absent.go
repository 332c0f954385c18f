package docker

import (
	"net/http"

	"ply/internal/errs"
)

// absentHandlers answers for the parts of Docker that this engine does not have, so that clients get a reason.
type absentHandlers struct{}

func (absentHandlers) routes(add adder) {
	manager := func(*call) error {
		return errs.New(errs.Unavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	swarm := func(*call) error { return unavailable("swarm", "this engine runs containers on one machine") }
	add(get, "/swarm", manager)
	add(get, "/swarm/unlockkey", manager)
	add(post, "/swarm/init", swarm)
	add(post, "/swarm/join", swarm)
	add(post, "/swarm/unlock", swarm)
	add(post, "/swarm/update", manager)
	add(put, "/volumes/{name}", manager) // cluster volumes
	add(post, "/swarm/leave", func(*call) error { return errs.New(errs.Unavailable, "This node is not part of a swarm") })
	for _, kind := range []string{"/nodes", "/services", "/tasks", "/secrets", "/configs"} {
		add(get, kind, manager)
		add(post, kind+"/create", manager)
		add(get, kind+"/{id}", manager)
		add(remove, kind+"/{id}", manager)
		add(post, kind+"/{id}/update", manager)
		add(get, kind+"/{id}/logs", manager)
	}

	plugins := func(*call) error { return unavailable("plugins", "this engine loads no foreign code") }
	noPlugin := func(c *call) error { return errs.New(errs.NotFound, "plugin %q not found", clip(c.vars["name"])) }
	add(get, "/plugins", func(c *call) error { return c.json(http.StatusOK, []struct{}{}) })
	add(get, "/plugins/privileges", plugins)
	add(post, "/plugins/pull", plugins)
	add(post, "/plugins/create", plugins)
	add(get, "/plugins/{name...}/json", noPlugin)
	add(remove, "/plugins/{name...}", noPlugin)
	for _, verb := range []string{"enable", "disable", "upgrade", "push", "set"} {
		add(post, "/plugins/{name...}/"+verb, noPlugin)
	}
}
