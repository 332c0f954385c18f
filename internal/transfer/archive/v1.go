package archive

import (
	"encoding/json"
	"time"

	"ply/internal/oci"
)

// v1Layer is a layer as the oldest layout knows it: a directory named after the hash of its v1 config, which names
// its parent's.
type v1Layer struct {
	id   string // 64 hex digits
	json []byte
}

// v1Version is the content of each directory's VERSION file.
const v1Version = "1.0"

// v1Chain makes up the v1 configs of an image's layers, bottom first: the top one is the image's config without what
// v1 does not know, those below carry nothing but their parent and a fixed time, so that they are equal in all images.
func v1Chain(e *export) []v1Layer {
	var layers []v1Layer
	parent := ""
	for i, chain := range e.img.Chain.IDs() {
		cfg := map[string]json.RawMessage{
			"created":          quote(time.Unix(0, 0).UTC().Format(time.RFC3339)),
			"container_config": json.RawMessage(`{}`),
		}
		if i == len(e.img.Chain)-1 {
			cfg = map[string]json.RawMessage{}
			if json.Unmarshal(e.img.Raw, &cfg) != nil {
				cfg = map[string]json.RawMessage{} // Get has decoded it: cannot happen
			}
			for _, k := range []string{"id", "parent", "rootfs", "history"} {
				delete(cfg, k)
			}
		}
		if parent != "" {
			cfg["parent"] = quote(parent)
		}
		// The hash covers the stack's identity too, so that equal configs over different files differ.
		cfg["layer_id"] = quote(string(chain))
		id := oci.DigestOf(marshal(cfg)).Hex()
		delete(cfg, "layer_id")
		cfg["id"] = quote(id)
		layers = append(layers, v1Layer{id, marshal(cfg)})
		parent = id
	}
	return layers
}

func quote(s string) json.RawMessage { return marshal(s) }

// marshal is for values that cannot fail: strings, and maps of what was JSON already.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null")
	}
	return b
}

func marshalLine(v any) []byte { return append(marshal(v), '\n') }
