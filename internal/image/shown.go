package image

import (
	"sync"

	"ply/internal/oci"
	"ply/internal/store/blob"
)

// shownConfigs remembers what lists show of configs, because reading and checking a thousand configs takes longer than all the rest of a list. An entry
// counts as long as its file is the same and was not written to. Safe for concurrent use.
type shownConfigs struct {
	mu    sync.Mutex
	known map[oci.ImageID]shownConfig
	size  int // of the labels and of a fixed part per entry, in bytes
}

type shownConfig struct {
	file   blob.Identity
	config oci.Config
}

// maxShownConfigs bounds shownConfigs, in bytes. When it is full, it begins anew.
const maxShownConfigs = 8 << 20

// of returns the part of a config that lists show: the time of its creation, its platform and its labels. Errors are those of config.
func (s *shownConfigs) of(images *Service, id oci.ImageID) (oci.Config, error) {
	file, known := images.st.Blobs.Identity(oci.Digest(id))
	if known {
		if c, ok := s.get(id, file); ok {
			return c, nil
		}
	}
	all, _, err := images.config(id)
	if err != nil {
		return oci.Config{}, err
	}
	c := oci.Config{
		Created: all.Created, Architecture: all.Architecture, Variant: all.Variant, OS: all.OS, OSVersion: all.OSVersion, OSFeatures: all.OSFeatures,
		Config: oci.RunConfig{Labels: all.Config.Labels},
	}
	if known {
		s.put(id, file, c)
	}
	return c, nil
}

func (s *shownConfigs) get(id oci.ImageID, file blob.Identity) (oci.Config, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.known[id]
	return c.config, ok && c.file == file
}

func (s *shownConfigs) put(id oci.ImageID, file blob.Identity, c oci.Config) {
	size := 512
	for k, v := range c.Config.Labels {
		size += len(k) + len(v) + 32
	}
	if size > maxShownConfigs/8 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || s.size+size > maxShownConfigs {
		s.known, s.size = map[oci.ImageID]shownConfig{}, 0
	}
	s.known[id] = shownConfig{file, c}
	s.size += size
}
