package wire

// Network is a listed network.
type Network struct {
	Name     string
	ID       string `json:"Id"`
	Created  string
	Scope    string
	Driver   string
	IPv4     *bool `json:"EnableIPv4"`
	IPv6     bool  `json:"EnableIPv6"`
	Internal bool
	Labels   map[string]string
}
