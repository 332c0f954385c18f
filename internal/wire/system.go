package wire

import "time"

// Version is the answer of GET /version.
type Version struct {
	Platform      struct{ Name string }
	Components    []Component
	Version       string
	APIVersion    string `json:"ApiVersion"`
	MinAPIVersion string
	GitCommit     string
	GoVersion     string
	Os, Arch      string
	KernelVersion string `json:",omitempty"`
	BuildTime     string `json:",omitempty"`
}

// Component is one program of an engine.
type Component struct {
	Name, Version string
	Details       map[string]string `json:",omitempty"`
}

// Info is the answer of GET /info, with fields of old versions: clients ignore what they do not know.
type Info struct {
	ID                string
	Containers        int
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	Driver            string
	DriverStatus      [][2]string
	Plugins           struct {
		Volume, Network, Authorization, Log []string
	}
	MemoryLimit        bool
	SwapLimit          bool
	CPUCfsPeriod       bool `json:"CpuCfsPeriod"`
	CPUCfsQuota        bool `json:"CpuCfsQuota"`
	CPUShares          bool
	CPUSet             bool
	PidsLimit          bool
	IPv4Forwarding     bool
	BridgeNfIptables   *bool `json:",omitempty"` // until 1.49
	BridgeNfIp6tables  *bool `json:",omitempty"` // until 1.49
	Debug              bool
	NFd                int
	OomKillDisable     bool
	NGoroutines        int
	SystemTime         string
	LoggingDriver      string
	CgroupDriver       string
	CgroupVersion      string `json:",omitempty"`
	NEventsListener    int
	KernelVersion      string
	OperatingSystem    string
	OSVersion          string
	OSType             string
	Architecture       string
	IndexServerAddress string
	RegistryConfig     RegistryConfig
	NCPU               int
	MemTotal           int64
	GenericResources   []struct{}
	DockerRootDir      string
	HTTPProxy          string `json:"HttpProxy"`
	HTTPSProxy         string `json:"HttpsProxy"`
	NoProxy            string
	Name               string
	Labels             []string
	ExperimentalBuild  bool
	ServerVersion      string
	Runtimes           map[string]Runtime
	DefaultRuntime     string
	Swarm              struct {
		NodeID, NodeAddr string
		LocalNodeState   string
		ControlAvailable bool
		Error            string
		RemoteManagers   []struct{}
	}
	LiveRestoreEnabled  bool
	Isolation           string
	InitBinary          string
	ContainerdCommit    Commit
	RuncCommit          Commit
	InitCommit          Commit
	SecurityOptions     []string
	DefaultAddressPools []AddressPool `json:",omitempty"`
	CDISpecDirs         []string
	DiscoveredDevices   *[]DiscoveredDevice `json:",omitempty"` // since 1.50
	Warnings            []string
}

// DiscoveredDevice is a device that a driver has found.
type DiscoveredDevice struct{ Source, ID string }

// Runtime is an OCI runtime.
type Runtime struct {
	Path string `json:"path"`
}

// Commit names the version of a part of an engine.
type Commit struct {
	ID       string
	Expected string `json:",omitempty"` // until 1.48
}

// AddressPool is a range that networks of Size bits are cut from.
type AddressPool struct {
	Base string
	Size int
}

// RegistryConfig says how an engine reaches registries.
type RegistryConfig struct {
	InsecureRegistryCIDRs []string
	IndexConfigs          map[string]IndexConfig
	Mirrors               []string
}

// IndexConfig says how an engine reaches one registry.
type IndexConfig struct {
	Name     string
	Mirrors  []string
	Secure   bool
	Official bool
}

// DiskUsage is the answer of GET /system/df.
type DiskUsage struct {
	LayersSize  int64
	Images      []Image
	Containers  []Container
	Volumes     []Volume
	BuildCache  []BuildCache
	BuilderSize *int64       `json:",omitempty"` // until 1.41
	Totals      *UsageTotals `json:",omitempty"` // ply's: instead of the lists, for a client that asked with totals=1
}

// UsageTotals are the sums of a DiskUsage.
type UsageTotals struct{ Images, Containers, Volumes, BuildCache UsageTotal }

// UsageTotal is the sum of one kind of object. Sizes are in bytes.
type UsageTotal struct {
	Count, Active     int
	Size, Reclaimable int64
}

// Total sums the lists. Sizes that are not known, -1, are left out.
func (d *DiskUsage) Total() UsageTotals {
	var t UsageTotals
	t.Images = UsageTotal{Count: len(d.Images), Size: d.LayersSize, Reclaimable: d.LayersSize}
	for i := range d.Images {
		im := &d.Images[i]
		if im.Containers > 0 {
			t.Images.Active++
			if im.Size != -1 && im.SharedSize != -1 {
				t.Images.Reclaimable -= im.Size - im.SharedSize
			}
		}
	}
	t.Containers.Count = len(d.Containers)
	for i := range d.Containers {
		c := &d.Containers[i]
		t.Containers.add(c.State == "running" || c.State == "paused" || c.State == "restarting", c.SizeRw)
	}
	t.Volumes.Count = len(d.Volumes)
	for i := range d.Volumes {
		if u := d.Volumes[i].UsageData; u != nil {
			t.Volumes.add(u.RefCount > 0, max(u.Size, 0))
		}
	}
	t.BuildCache.Count = len(d.BuildCache)
	for i := range d.BuildCache {
		b := &d.BuildCache[i]
		size := b.Size
		if b.Shared { // an image has it
			size = 0
		}
		t.BuildCache.add(b.InUse, size)
	}
	return t
}

func (t *UsageTotal) add(active bool, size int64) {
	t.Size += size
	if active {
		t.Active++
	} else {
		t.Reclaimable += size
	}
}

// BuildCache is one record of the build cache.
type BuildCache struct {
	ID, Type, Description string
	InUse, Shared         bool
	Size                  int64
	CreatedAt             time.Time
	LastUsedAt            *time.Time
	UsageCount            int
}

// BuildCachePruned is the answer of POST /build/prune.
type BuildCachePruned struct {
	CachesDeleted  []string
	SpaceReclaimed int64
}

// Event is one line of GET /events. Status, ID and From are older than Type and Actor.
type Event struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	Type   string
	Action string
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
	Scope    string `json:"scope,omitempty"`
	Time     int64  `json:"time,omitempty"`
	TimeNano int64  `json:"timeNano,omitempty"`
}

// Error is the body of an answer with an error status.
type Error struct {
	Message string `json:"message"`
}
