// Package transfer moves images: pull and push (package registry below), save, load, import and export
// (package archive below). This package holds what the two share: progress, options, credentials.
package transfer

import (
	"io"

	"ply/internal/oci"
)

// Progress is one message of long work. The API turns it into docker's JSON stream, the CLI into lines.
type Progress struct {
	ID      string // layer's 12 hex digits, or the tag for the line "latest: Pulling from …"; "" for a plain line
	Action  string // "Downloading", "Pull complete", "Pushed", … or a whole line when ID is ""
	Current int64
	Total   int64  // 0 = unknown
	Unit    string // "" = bytes
	Aux     any    // a value for the stream's aux field, such as PushResult
}

// Sink takes progress; called from several goroutines, never blocks for long. Nil is allowed nowhere: use Discard.
type Sink func(Progress)

// Discard ignores progress.
func Discard(Progress) {}

// Credentials for one registry, as the client sent them (X-Registry-Auth). Never logged.
type Credentials struct {
	Username      string
	Password      string
	IdentityToken string
	RegistryToken string
	ServerAddress string
}

// PullOptions of a pull.
type PullOptions struct {
	Platform    string // "os/arch[/variant]"; "" = the host's
	Credentials Credentials
	AllTags     bool
}

// PushOptions of a push.
type PushOptions struct {
	Credentials Credentials
	AllTags     bool
	Platform    string
}

// PushResult is what a push ends with.
type PushResult struct {
	Tag    string
	Digest oci.Digest
	Size   int
}

// SearchResult is one line of search, in the shape in which registries and the Engine API both give it.
type SearchResult struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"star_count"`
	Official    bool   `json:"is_official"`
	Automated   bool   `json:"is_automated"`
}

// SaveOptions of save.
type SaveOptions struct {
	Format string // "", "hybrid", "oci", "docker", "legacy"
}

// LoadOptions of load.
type LoadOptions struct {
	Quiet    bool
	Platform string
}

// ImportOptions of import.
type ImportOptions struct {
	Name     oci.Reference // zero = no name
	Message  string
	Changes  []string
	Platform string
	Format   oci.Format
	Source   io.Reader // tar, plain or compressed
	From     string    // what to say in history: "-" or a URL
}
