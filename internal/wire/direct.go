package wire

import "time"

// The types of POST /build/direct, which is ply's own: the client names its directories, secrets and outputs in the request and then stays
// connected. The engine sends BuildFrames: what happens, and what it wants; the client answers each want with a BuildAnswer. On a unix
// socket an answer carries an open file: a directory is read in place. On another connection the client opens a stream for it instead.

// DirectBuild is the body of POST /build/direct.
type DirectBuild struct {
	Options   map[string]string // of the front end, by BuildKit's names
	Network   string            `json:",omitempty"` // that a user created, for the steps
	Tags      []string          `json:",omitempty"`
	Exports   []BuildOption     `json:",omitempty"`
	CacheFrom []BuildOption     `json:",omitempty"`
	CacheTo   []BuildOption     `json:",omitempty"`
	Allow     []string          `json:",omitempty"` // entitlements: network.host, security.insecure
	Explain   bool              `json:",omitempty"` // say why steps were not in the cache
	Token     string            // names the build in requests for streams
}

// BuildOption is an output or a cache: a type with attributes, by BuildKit's names.
type BuildOption struct {
	Type  string
	Attrs map[string]string `json:",omitempty"`
}

// BuildFrame is a message of the engine. One of its fields is set.
type BuildFrame struct {
	Events *BuildEvents `json:",omitempty"`
	Want   *BuildWant   `json:",omitempty"`
	Ended  *BuildEnded  `json:",omitempty"`
	Done   *BuildDone   `json:",omitempty"` // the last frame
}

// Kinds of wants.
const (
	WantLocal       = "local"       // Name is a directory; the answer is a file of it, or, as a stream, its tar
	WantSecret      = "secret"      // Name is the ID; the answer is Data
	WantAgent       = "agent"       // Name is the ID; the answer is a stream to the agent
	WantCredentials = "credentials" // Name is the host; the answer is Data, a JSON Auth
	WantOutput      = "output"      // Index is the output; the answer is a stream that takes it
	WantBlob        = "blob"        // Digest is a blob of the cache or OCI layout in the directory Name; the answer is a file
	WantPutBlob     = "put-blob"    // the directory Name takes a blob; the answer is a stream, as for an output, or Has
	WantOutputDir   = "output-dir"  // like output; the stream takes the tar of a directory
)

// BuildWant asks the client for something.
type BuildWant struct {
	ID     uint64
	Kind   string
	Name   string            `json:",omitempty"`
	Index  int               `json:",omitempty"`
	Digest string            `json:",omitempty"`
	Meta   map[string]string `json:",omitempty"` // what is known of the output
	Stream bool              `json:",omitempty"` // a directory is wanted as a tar, because it cannot be read in place
}

// BuildEnded says that the stream of an output has ended, and whether all of the output was in it.
type BuildEnded struct {
	ID     uint64
	Failed bool `json:",omitempty"`
}

// BuildAnswer answers a want. An output is answered twice: with the stream, and with how it ended.
type BuildAnswer struct {
	ID       uint64
	Data     []byte `json:",omitempty"`
	Error    string `json:",omitempty"`
	NotFound bool   `json:",omitempty"` // the class of Error
	Tar      bool   `json:",omitempty"` // the stream is the tar of a directory
	Has      bool   `json:",omitempty"` // the blob is there
}

// BuildEvents say what happened. The first four lists are those of BuildKit's rawjson progress.
type BuildEvents struct {
	Vertexes []BuildVertex      `json:"vertexes,omitempty"`
	Statuses []*BuildStatus     `json:"statuses,omitempty"`
	Logs     []BuildLog         `json:"logs,omitempty"`
	Warnings []BuildWarning     `json:"warnings,omitempty"`
	Steps    []BuildInstruction `json:"steps,omitempty"`
}

// BuildVertex is an operation that began, or that ended when Completed is set.
type BuildVertex struct {
	Digest    string     `json:"digest"`
	Inputs    []string   `json:"inputs,omitempty"`
	Name      string     `json:"name,omitempty"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
	Miss      string     `json:"miss,omitempty"` // why the result was not in the cache
}

// BuildStatus is how far a part of an operation has come.
type BuildStatus struct {
	ID        string     `json:"id"`
	Vertex    string     `json:"vertex"`
	Name      string     `json:"name,omitempty"`
	Total     int64      `json:"total,omitempty"`
	Current   int64      `json:"current"`
	Timestamp time.Time  `json:"timestamp"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Container string     `json:"container,omitempty"` // the container that runs the command
}

// BuildLog is output of a command. Stream is 1 for stdout, 2 for stderr.
type BuildLog struct {
	Vertex    string    `json:"vertex"`
	Stream    int       `json:"stream"`
	Data      []byte    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

// BuildWarning is a remark about the Dockerfile.
type BuildWarning struct {
	Level      int                `json:"level,omitempty"`
	Short      []byte             `json:"short,omitempty"`
	Detail     [][]byte           `json:"detail,omitempty"`
	URL        string             `json:"url,omitempty"`
	SourceInfo *BuildWarningFile  `json:"sourceInfo,omitempty"`
	Range      []BuildWarningSpan `json:"range,omitempty"`
}

// BuildWarningFile is the Dockerfile of a warning.
type BuildWarningFile struct {
	Filename string `json:"filename,omitempty"`
	Data     []byte `json:"data,omitempty"`
}

// BuildWarningSpan is a part of a file.
type BuildWarningSpan struct {
	Start BuildPosition `json:"start"`
	End   BuildPosition `json:"end"`
}

// BuildPosition is a place in a file. Lines count from 1.
type BuildPosition struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

// States of a step.
const (
	StepPlanned = ""        // it belongs to the image
	StepStarted = "started" // it is its turn
	StepDone    = "done"    // Image is the image after it
)

// BuildInstruction is an instruction of the image. All of an image are sent as planned first, and then started and done in order.
type BuildInstruction struct {
	Index    int    `json:"index"` // from 1
	Total    int    `json:"total"`
	Text     string `json:"text,omitempty"`
	Vertex   string `json:"vertex,omitempty"`
	State    string `json:"state,omitempty"`
	Image    string `json:"image,omitempty"`
	Cached   bool   `json:"cached,omitempty"`
	Base     bool   `json:"base,omitempty"` // FROM
	Platform string `json:"platform,omitempty"`
}

// BuildDone is how a build ended.
type BuildDone struct {
	Images   []string          `json:",omitempty"` // one per platform; the last one has the tags
	Tags     []string          `json:",omitempty"` // in the form for people
	Metadata map[string][]byte `json:",omitempty"` // answers of the front end to a question
	Answers  map[string]string `json:",omitempty"` // what the outputs say about themselves
	Error    *BuildError       `json:",omitempty"`
}

// BuildError is why a build failed.
type BuildError struct {
	Message string // with the lines of the Dockerfile
	Hint    string `json:",omitempty"`
	Vertex  string `json:",omitempty"`
	Image   string `json:",omitempty"` // the file system as the failed command left it
	Code    int    `json:",omitempty"` // of the command; 0 when it did not run
}
