package wire

// Volume is a volume.
type Volume struct {
	CreatedAt  string `json:",omitempty"`
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Options    map[string]string
	Scope      string
	Status     map[string]any `json:",omitempty"`
	UsageData  *VolumeUsage   `json:",omitempty"` // in GET /system/df
}

// VolumeUsage is what a volume takes, in bytes, and how many containers refer to it. -1 means unknown.
type VolumeUsage struct {
	Size     int64
	RefCount int64
}

// Volumes is the answer of GET /volumes.
type Volumes struct {
	Volumes  []Volume
	Warnings []string
}

// VolumeBody is the body of POST /volumes/create.
type VolumeBody struct {
	Name, Driver       string
	DriverOpts, Labels map[string]string
	ClusterVolumeSpec  *struct{} `json:",omitempty"`
}

// VolumesPruned is the answer of POST /volumes/prune.
type VolumesPruned struct {
	VolumesDeleted []string
	SpaceReclaimed int64
}
