package wire

// IDs of messages with an auxiliary value in the stream of POST /build?version=2. Those that begin with "ply." are this engine's own; other clients
// pass over them.
const (
	BuildTrace    = "moby.buildkit.trace" // Aux is a string: a StatusResponse of BuildKit in base64
	BuildImage    = "moby.image.id"       // Aux is a BuildImageID
	BuildStepDone = "ply.build.step"      // Aux is a BuildStep
	BuildFailed   = "ply.build.failed"    // Aux is a BuildFailure; the error follows
	BuildAnswers  = "ply.build.answers"   // Aux is a map: what the outputs say about themselves, by BuildKit's names
	BuildMetadata = "ply.build.metadata"  // Aux is a map of byte strings: the answers of the front end to a question
)

// BuildImageID is the image that a build made.
type BuildImageID struct{ ID string }

// BuildStep is an instruction that has ended.
type BuildStep struct {
	Index, Total int
	Text         string
	Vertex       string `json:",omitempty"` // digest of its operation, as in the trace
	Image        string `json:",omitempty"` // the image after it
	Cached       bool
}

// BuildFailure is what a step that failed left.
type BuildFailure struct {
	Image string `json:",omitempty"` // the file system as the command left it
	Code  int    // of the command
}
