// Package transfer holds what the packages below it share: progress, options, credentials, the limit of parallel transfers.
//
// Package remote is the client of the distribution protocol, pull and push move images between the store and registries,
// and archive saves, loads and imports tar files.
package transfer

import (
	"io"

	"ply/internal/oci"
)

// Credentials are what a client sent for one registry. They are never logged.
type Credentials struct {
	Username      string
	Password      string
	IdentityToken string
	RegistryToken string
	ServerAddress string
}

// PullOptions are the options of Puller.Pull.
type PullOptions struct {
	Platform    string // "os/arch[/variant]"; "" = the platform of the host
	Credentials Credentials
	AllTags     bool // pull every tag of the repository

	// Aside leaves the name to the image that has it: the pulled one gets the name of its digest only.
	Aside bool
	// Got is told which image a name means; nil when nobody asks.
	Got func(oci.ImageID)
}

// PushOptions are the options of Pusher.Push.
type PushOptions struct {
	Credentials Credentials
	AllTags     bool   // push every tag of the repository
	Platform    string // refuse an image for another platform; "" = any
}

// SearchResult is one repository that a search found.
type SearchResult struct {
	Name        string
	Description string
	Stars       int
	Official    bool
	Automated   bool
}

// SaveOptions are the options of Archive.Save.
type SaveOptions struct {
	Format    string   // "", "hybrid", "oci", "docker", "legacy"
	Platforms []string // which images to take from an index; none = all that are here
}

// Remote is what a registry has under a name.
type Remote struct {
	oci.Descriptor                // of the manifest or index
	Platforms      []oci.Platform // of the images
}

// LoadOptions are the options of Archive.Load.
type LoadOptions struct {
	Quiet    bool   // do not report layers
	Platform string // the only image to take from an index; "" = all that the archive has, as one name
}

// ImportOptions are the options of Archive.Import.
type ImportOptions struct {
	Name     oci.Reference // zero = no name
	Message  string        // "" = "Imported from " and From
	Changes  []string      // instructions of package change
	Platform string        // "" = the platform of the host
	Format   oci.Format    // "" = the default of the daemon
	Source   io.Reader     // tar, plain or compressed
	From     string        // "-" or a URL, for the history, which gets it without user name and password
}
