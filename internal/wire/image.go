package wire

import (
	"time"

	"ply/internal/oci"
)

// Image is one element of GET /images/json.
type Image struct {
	Containers  int64
	Created     int64
	ID          string `json:"Id"`
	Labels      map[string]string
	ParentID    string `json:"ParentId"`
	RepoDigests []string
	RepoTags    []string
	SharedSize  int64
	Size        int64
	VirtualSize *int64 `json:",omitempty"` // until 1.43
	Damaged     string `json:",omitempty"` // ply's own: why the image cannot be used

	Manifests []ImageManifest `json:",omitempty"` // since 1.47, when they are asked for
}

// ImageManifest is one of the images that a name means, or something that an index lists beside them.
type ImageManifest struct {
	ID         string // digest of the manifest
	Descriptor oci.Descriptor
	Available  bool
	Size       struct{ Content, Total int64 }
	Kind       string // image, attestation or unknown

	ImageData       *ImageManifestData `json:",omitempty"`
	AttestationData *AttestationData   `json:",omitempty"`
}

// ImageManifestData says more about an image.
type ImageManifestData struct {
	Platform   oci.Platform
	Containers []string
	Size       struct{ Unpacked int64 }
	Image      string `json:"Id"` // ply's own: the ID, by which docker's clients know images
}

// AttestationData says what an attestation is about.
type AttestationData struct {
	For oci.Digest // of a manifest
}

// ImageDetail is the answer of GET /images/{name}/json.
type ImageDetail struct {
	ID              string `json:"Id"`
	RepoTags        []string
	RepoDigests     []string
	Parent          string
	Comment         string
	Created         string       `json:",omitempty"`
	Container       *string      `json:",omitempty"` // until 1.44
	ContainerConfig *ImageConfig `json:",omitempty"` // Docker sends it until 1.44. docker-compose 1.29 asks for the newest version, and fails without it.
	DockerVersion   string
	Author          string
	Config          ImageConfig
	Architecture    string
	Variant         string `json:",omitempty"`
	Os              string
	OsVersion       string `json:",omitempty"`
	Size            int64
	VirtualSize     *int64 `json:",omitempty"` // until 1.43
	GraphDriver     GraphDriver
	RootFS          struct {
		Type   string
		Layers []string `json:",omitempty"`
	}
	Metadata  struct{ LastTagTime time.Time }
	Manifests []ImageManifest `json:",omitempty"` // since 1.48, when they are asked for
}

// GraphDriver names the storage driver of an image or a container.
type GraphDriver struct {
	Data map[string]string
	Name string
}

// ImageConfig is the configuration that containers of an image start with. Until 1.49 it had the fields of a container
// too, always empty.
type ImageConfig struct {
	*EmptyContainerConfig
	ArgsEscaped  bool `json:",omitempty"`
	Cmd          Words
	Entrypoint   Words
	Env          []string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Healthcheck  *oci.Healthcheck    `json:",omitempty"`
	Labels       map[string]string
	OnBuild      []string
	Shell        []string `json:",omitempty"`
	StopSignal   string   `json:",omitempty"`
	User         string
	Volumes      map[string]struct{}
	WorkingDir   string
}

// EmptyContainerConfig is the part of ImageConfig that says nothing about an image.
type EmptyContainerConfig struct {
	Hostname     string
	Domainname   string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Image        string
}

// HistoryItem is one line of an image's history, newest first.
type HistoryItem struct {
	Comment   string
	Created   int64
	CreatedBy string
	ID        string `json:"Id"`
	Size      int64
	Tags      []string
}

// Layer is one layer of ply's own GET /images/{name}/layers and GET /images/tree.
type Layer struct {
	DiffID      string   // of the layer's uncompressed tar
	ChainID     string   // of the stack up to and with this layer
	Size        int64    // bytes
	VirtualSize int64    // bytes of the stack up to and with this layer
	CreatedBy   string   `json:",omitempty"`
	Tags        []string // names of the images whose top layer this is
	Images      []string // IDs of the images whose top layer this is
	Children    []*Layer `json:",omitempty"` // in the tree: the stacks with one more layer
}

// Removed is one line of an image removal; one of the two is set.
type Removed struct {
	Untagged string `json:",omitempty"`
	Deleted  string `json:",omitempty"`
}

// ImagesPruned is the answer of POST /images/prune.
type ImagesPruned struct {
	ImagesDeleted  []Removed
	SpaceReclaimed int64
}

// Committed is the answer of POST /commit. Warnings is ply's own.
type Committed struct {
	ID       string   `json:"Id"`
	Warnings []string `json:",omitempty"`
}
