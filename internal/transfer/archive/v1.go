package archive

import (
	"encoding/json"
	"time"

	"ply/internal/oci"
)

// v1Layer is a layer in the oldest layout: a directory that is named after the hash of its v1 config. The config names the
// directory of the layer below.
type v1Layer struct {
	id   string // 64 hex digits
	json []byte
}

// v1Version is the content of each directory's VERSION file.
const v1Version = "1.0"

// v1Chain returns v1 configs for the layers of an image, bottom layer first. That of the top layer is the config of the image
// without the fields that v1 does not have. The others have only a parent and a fixed time, so that a layer has the same v1
// config in all images.
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
				cfg = map[string]json.RawMessage{} // cannot happen: Get has decoded it
			}
			for _, k := range []string{"id", "parent", "rootfs", "history"} {
				delete(cfg, k)
			}
		}
		if parent != "" {
			cfg["parent"] = quote(parent)
		}
		// The hash includes the chain ID, so that equal configs of different layers have different IDs.
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

// marshal encodes values for which encoding cannot fail: strings, and maps of values that were decoded from JSON.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null")
	}
	return b
}

func marshalLine(v any) []byte { return append(marshal(v), '\n') }
