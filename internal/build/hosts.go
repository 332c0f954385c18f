package build

import (
	"maps"
	"strings"

	"ply/internal/build/ops"
)

// replaceGateway replaces the word host-gateway in the extra hosts of a request, because the front end takes addresses only.
func replaceGateway(req *Request) {
	list := strings.Split(req.Front.Options["add-hosts"], ",")
	found := false
	for i, h := range list {
		if name, ok := strings.CutSuffix(h, "=host-gateway"); ok {
			list[i], found = name+"="+ops.HostGateway, true
		}
	}
	if found {
		req.Front.Options = maps.Clone(req.Front.Options)
		req.Front.Options["add-hosts"] = strings.Join(list, ",")
	}
}
