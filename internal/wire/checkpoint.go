package wire

// CheckpointOptions is the body of POST /containers/{id}/checkpoints.
type CheckpointOptions struct {
	CheckpointID  string
	CheckpointDir string // on the engine's host; "" is the container's own
	Exit          bool   // end the processes
}

// Checkpoint is an entry of the answer to GET /containers/{id}/checkpoints.
type Checkpoint struct {
	Name string
}
