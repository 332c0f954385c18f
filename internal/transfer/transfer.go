// Package transfer moves images: pull and push (package registry below), save, load, import and export
// (package archive below). This package holds what the two share: progress, options, credentials.
package transfer

import (
	"io"

	"ply/internal/oci"
)

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

// SearchResult is one repository that a search found.
type SearchResult struct {
	Name        string
	Description string
	Stars       int
	Official    bool
	Automated   bool
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
