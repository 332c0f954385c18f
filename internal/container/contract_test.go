package container_test

import (
	"ply/internal/api/docker"
	"ply/internal/container"
	"ply/internal/image"
	"ply/internal/network"
	"ply/internal/volume"
)

// The services implement the interfaces that the engine uses them for.
var (
	_ docker.Containers = (*container.Service)(nil)
	_ docker.Files      = (*container.Files)(nil)
	_ docker.Sessions   = (*container.Sessions)(nil)
	_ docker.Volumes    = volume.Contents{}
	_ container.Images  = (*image.Service)(nil)
	_ container.Network = (*network.Service)(nil)
)
