package docker

// sessionHandlers serves attach, logs and exec.
type sessionHandlers struct {
	sessions   Sessions
	containers containerGetter
}

func (h sessionHandlers) routes(add adder) {
	add(get, "/containers/{id}/logs", h.logs)
	add(post, "/containers/{id}/resize", h.resize)
	add(post, "/containers/{id}/attach", h.attach)
	add(get, "/containers/{id}/attach/ws", h.attachWebSocket)
	add(post, "/containers/{id}/exec", h.execCreate)
	add(post, "/exec/{id}/start", h.execStart)
	add(post, "/exec/{id}/resize", h.execResize)
	add(get, "/exec/{id}/json", h.execInspect)
}
