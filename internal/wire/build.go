package wire

import "time"

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

// PastBuild is a build in the history of GET /builds, and with its steps of GET /builds/{id}.
type PastBuild struct {
	ID        string
	Name      string   // its first tag, or the target; "" when it has neither
	Status    string   // running, completed, failed or canceled
	Tags      []string `json:",omitempty"`
	Target    string   `json:",omitempty"`
	File      string   `json:",omitempty"`
	Platforms []string `json:",omitempty"`
	Started   time.Time
	Ended     *time.Time `json:",omitempty"`
	Duration  int64      // nanoseconds
	Steps     int        // that ended
	Cached    int        // of these, those that were not executed
	Error     string     `json:",omitempty"`
	Images    []string   `json:",omitempty"`
	Warnings  []string   `json:",omitempty"`
	LogSize   int64
	LogCut    bool              `json:",omitempty"` // the end of the log is missing
	Outputs   map[string]string `json:",omitempty"` // what the outputs say about themselves

	Vertices []PastStep `json:",omitempty"`
}

// PastStep is a step of a build.
type PastStep struct {
	Digest   string `json:",omitempty"`
	Name     string
	Started  time.Time
	Duration int64 // nanoseconds
	Cached   bool
	Done     bool
	Miss     string `json:",omitempty"` // why an earlier result could not be used
	Error    string `json:",omitempty"`
}
