package main

import (
	"log/slog"

	"ply/internal/api/docker"
	"ply/internal/container"
	"ply/internal/engine"
	"ply/internal/volume"
)

// services hands the services of the engine to the Engine API. hosts are the names by which clients may call a TCP listener, and oldest is the
// oldest version of the API that is answered. experimental is what clients are told.
func services(e *engine.Engine, hosts []string, oldest int, experimental bool, log *slog.Logger) docker.Options {
	return docker.Options{
		Images: e.Images, Puller: e.Puller, Pusher: e.Pusher, Archive: e.Archive, Registry: e.Remote,
		Containers: e.Containers, Checkpoints: container.NewCheckpoints(e.Containers), Files: e.Containers.Files(),
		Sessions: e.Containers.Sessions(), Volumes: volume.Contents{Service: e.Volumes}, Networks: e.Networks, Connector: container.NewConnector(e.Containers),
		Events: e.Events, System: e.System, Checker: e, Importer: e.Importer, Builder: e.Builder, Log: log, Driver: e.Store.Layers.Name(), Hosts: hosts, OldestAPI: oldest, Experimental: experimental,
	}
}
