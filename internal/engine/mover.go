package engine

import (
	"ply/internal/transfer/archive"
	"ply/internal/transfer/registry"
)

// mover is what the API knows as one thing: images that come and go by the network and by archives.
type mover struct {
	*registry.Client
	*archive.Archive
}
