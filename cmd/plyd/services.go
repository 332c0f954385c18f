package main

import (
	"log/slog"

	"ply/internal/api/docker"
	"ply/internal/engine"
	"ply/internal/transfer/archive"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/push"
	"ply/internal/transfer/remote"
)

// services hands the services of the engine to the Engine API. hosts are the names by which clients may call a TCP listener.
func services(e *engine.Engine, hosts []string, log *slog.Logger) docker.Options {
	return docker.Options{
		Images: e.Images, Mover: mover{e.Puller, e.Pusher, e.Archive, e.Remote}, Containers: e.Containers, Files: e.Containers.Files(),
		Sessions: e.Containers.Sessions(), Volumes: e.Volumes, Networks: e.Networks,
		Events: e.Events, System: e.System, Log: log, Driver: e.Store.Layers.Name(), Hosts: hosts,
	}
}

// mover moves images over the network and in archives, which the API uses as one service.
type mover struct {
	*pull.Puller
	*push.Pusher
	*archive.Archive
	*remote.Client
}
