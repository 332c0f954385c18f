package remote

// The hub is special in four ways: its names leave the host out, its registry and its search index have hosts of their own, and its
// credentials are kept under a key from before there were registries.
const (
	hubDomain   = "docker.io"
	hubRegistry = "registry-1.docker.io"
	hubIndex    = "index.docker.io"
	hubAuthKey  = "https://index.docker.io/v1/"
)

// isHub reports whether a server address, as clients write it, means the hub.
func isHub(address string) bool {
	switch address {
	case "", hubDomain, hubIndex, hubRegistry, hubAuthKey:
		return true
	}
	return false
}
