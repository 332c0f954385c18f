package wire

// SearchResult is one repository that a search found.
type SearchResult struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"star_count"`
	Official    bool   `json:"is_official"`
	Automated   bool   `json:"is_automated"`
}

// RegistryImage is the answer of GET /distribution/{name}/json.
type RegistryImage struct {
	Descriptor RegistryDescriptor
	Platforms  []RegistryPlatform
}

// RegistryDescriptor names a manifest or index of a registry.
type RegistryDescriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// RegistryPlatform is what one image of a registry runs on.
type RegistryPlatform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Variant      string   `json:"variant,omitempty"`
}
