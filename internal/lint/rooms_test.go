package lint

import (
	"slices"
	"strings"
	"testing"
)

// inside orders the packages of one room, from the ground up, as floors does for the rooms. Paths are relative to internal. A
// package may import those of lower levels of its room, and of its own level nothing. A pattern that ends in /... stands for
// every package below it; the first level that fits counts.
var inside = map[string][][]string{
	"api": {
		{"api/buildkit", "api/direct", "api/docker/stream", "api/listen"},
		{"api/docker"},
	},
	"build": {
		{"build/ops", "build/relay", "build/tree", "build/tree/treetest", "build/cachetransfer"},
		{"build/dockerfile", "build/fileop", "build/buildkitkey", "build/provenance", "build/sbom"},
		{"build/solver"},
		{"build/cache", "build/export", "build/history", "build/runner", "build/source"},
		{"build"},
	},
	"cli": {
		{"cli/client", "cli/config", "cli/contexts", "cli/format", "cli/opts", "cli/tarstream", "cli/terminal"},
		{"cli/daemon", "cli/attach", "cli/bakefile", "cli/buildview", "cli/direct", "cli/progress", "cli/table"},
		{"cli/command"},
		{"cli/command/..."}, // commands share what stands below and never import each other
		{"cli"},
	},
	"container": {
		{"container/apparmor", "container/cdi", "container/names", "container/seccomp", "container/shim", "container/spec"},
		{"container/logfile", "container/etc", "container/rootfs"},
		{"container/logremote"},
		{"container/runspec", "container/session", "container/supervise", "container/logforward"},
		{"container"},
	},
	"dockerroot": {{"dockerroot"}, {"dockerroot/dockerroottest"}},
	"durable":    {{"durable"}, {"durable/crashstate", "durable/faultfs", "durable/powercut"}},
	"image":      {{"image/change"}, {"image"}, {"image/imagetest"}},
	"network": {
		{"network/changes", "network/firewalld", "network/ipam", "network/names", "network/nft", "network/proxy"},
		{"network/namespace"},
		{"network/resolver"},
		{"network"},
		{"network/ports", "network/rules"},
		{"network/firewalld/firewalldtest"},
		{"network/bridge", "network/vlan"},
	},
	"record": {{"record"}, {"record/recordtest"}},
	"registry": {
		{"registry/content"},
		{"registry/access", "registry/metadata", "registry/blobs", "registry/remote", "registry/oidc"},
		{"registry/metadata/metadatatest", "registry/metadata/bolt", "registry/metadata/postgres", "registry/blobs/blobstest", "registry/blobs/directory",
			"registry/blobs/s3", "registry/repository", "registry/queue", "registry/policy", "registry/oidc/oidctest", "registry/audit"},
		{"registry/metadata/postgres/postgrestest", "registry/blobs/s3/s3test"},
		{"registry/api", "registry/gc", "registry/auth", "registry/certificate", "registry/notify", "registry/observe", "registry/proxy", "registry/replicate", "registry/search"},
		{"registry/migrate", "registry/check", "registry/people", "registry/trace", "registry/web"},
		{"registry/server"},
		{"registry/config"},
	},
	"safepath": {{"safepath"}, {"safepath/racetest"}},
	"store": {
		{"store/blob", "store/meta", "store/gc", "store/layer", "store/check"},
		{"store/meta/metatest", "store/layer/quota", "store/layer/tarscan", "store/layer/upper", "store/layer/layertest"},
		{"store/layer/tree", "store/layer/writable", "store/layer/erofs/image"},
		{"store/layer/erofs", "store/layer/overlay2", "store/layer/vfs"},
		{"store/layer/drivers"},
		{"store"},
	},
	"wire": {{"wire"}, {"wire/frames"}},
	"transfer": {
		{"transfer"},
		{"transfer/remote", "transfer/archive"},
		{"transfer/remote/remotetest", "transfer/pull", "transfer/push"},
		{"transfer/transfertest"},
	},
}

// level returns the level of a package in its room, or -1.
func level(levels [][]string, path string) int {
	at := slices.IndexFunc(levels, func(l []string) bool { return slices.Contains(l, path) })
	if at >= 0 {
		return at
	}
	return slices.IndexFunc(levels, func(l []string) bool {
		return slices.ContainsFunc(l, func(p string) bool {
			below, ok := strings.CutSuffix(p, "...")
			return ok && strings.HasPrefix(path, below)
		})
	})
}

// Imports inside a room point down, too. A room of one package needs no drawing.
func TestImportsInsideRoomsPointDown(t *testing.T) {
	drawn := map[string]bool{}
	for _, levels := range inside {
		for _, l := range levels {
			for _, path := range l {
				drawn[path] = true
			}
		}
	}
	for _, p := range list(t, "./internal/...") {
		from := strings.TrimPrefix(p.ImportPath, "ply/internal/")
		levels, several := inside[room(p.ImportPath)]
		if !several {
			if strings.Contains(from, "/") {
				t.Errorf("%s: room %q has several packages; draw them in inside", p.ImportPath, room(p.ImportPath))
			}
			continue
		}
		delete(drawn, from)
		at := level(levels, from)
		if at < 0 {
			t.Errorf("%s has no level in its room: draw it in inside", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, "ply/internal/")
			if ours && room(imp) == room(p.ImportPath) && level(levels, to) >= at {
				t.Errorf("%s imports %s, which does not stand below it in their room", p.ImportPath, imp)
			}
		}
	}
	for path := range drawn {
		if !strings.HasSuffix(path, "/...") {
			t.Errorf("inside draws %s, which is not there", path)
		}
	}
}
