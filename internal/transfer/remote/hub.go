package remote

// Docker Hub is special in four ways: names leave out its host; its registry has another host name; so has its search index; and
// clients keep its credentials under a URL of the old index.
const (
	hubDomain   = "docker.io"
	hubRegistry = "registry-1.docker.io"
	hubIndex    = "index.docker.io"
	hubAuthKey  = "https://index.docker.io/v1/"
)

// isHub reports whether a server address, as clients write it, means Docker Hub.
func isHub(address string) bool {
	switch address {
	case "", hubDomain, hubIndex, hubRegistry, hubAuthKey:
		return true
	}
	return false
}
