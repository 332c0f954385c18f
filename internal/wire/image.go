package wire

// Image is one row of /images/json.
type Image struct {
	ID          string `json:"Id"`
	ParentID    string `json:"ParentId"`
	RepoTags    []string
	RepoDigests []string
	Created     int64
	Size        int64
	SharedSize  int64
	VirtualSize int64
	Containers  int64
	Labels      map[string]string
}

// ImageDetail is what the command line reads of an image inspect.
type ImageDetail struct {
	ID       string `json:"Id"`
	RepoTags []string
	Size     int64
	RootFS   struct {
		Type   string
		Layers []string
	}
	Config *Config
}

// HistoryItem is one line of an image's history, newest first.
type HistoryItem struct {
	ID        string `json:"Id"`
	Created   int64
	CreatedBy string
	Tags      []string
	Size      int64
	Comment   string
}

// Removed is one line of an image removal.
type Removed struct {
	Untagged string
	Deleted  string
}
