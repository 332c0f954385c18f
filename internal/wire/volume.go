package wire

// Volume is a volume.
type Volume struct {
	Name, Driver, Mountpoint, Scope string
	CreatedAt                       string
	Labels                          map[string]string
	Options                         map[string]string
	UsageData                       *struct{ Size, RefCount int64 }
}
