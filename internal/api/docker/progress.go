package docker

import (
	"fmt"

	"ply/internal/api/docker/stream"
	"ply/internal/oci"
	"ply/internal/transfer"
)

// pushResult is the aux value with which a push of one tag ends.
type pushResult struct {
	Tag    string
	Digest oci.Digest
	Size   int
}

// sink puts the progress of a transfer into docker's words.
func sink(put func(stream.Message)) transfer.Sink {
	return func(p transfer.Progress) {
		for _, m := range messages(p) {
			put(m)
		}
	}
}

// messages returns what docker says about a state: nearly always one message. Docker writes about layers with an ID and a
// progress detail, about a whole pull or push with a status, and about a load with a line of text.
func messages(p transfer.Progress) []stream.Message {
	layer := func(words string) []stream.Message {
		m := stream.Message{ID: p.Layer, Status: words, Progress: &stream.Progress{Current: p.Current, Total: p.Total}}
		if p.State.Counts() && p.Current > 0 {
			m.Counter = int(p.State)
		}
		return []stream.Message{m}
	}
	status := func(format string, args ...any) []stream.Message {
		return []stream.Message{{Status: fmt.Sprintf(format, args...)}}
	}
	text := func(format string, args ...any) []stream.Message {
		return []stream.Message{{Stream: fmt.Sprintf(format, args...) + "\n"}}
	}
	switch p.State {
	case transfer.PullStarted:
		id := p.Ref.Tag()
		if p.Ref.Digest() != "" {
			id = p.Ref.String()
		}
		return []stream.Message{{ID: id, Status: "Pulling from " + p.Ref.Path()}}
	case transfer.LayerExists:
		return layer("Already exists")
	case transfer.LayerQueued:
		return layer("Pulling fs layer")
	case transfer.LayerWaiting:
		return layer("Waiting")
	case transfer.LayerDownloading:
		return layer("Downloading")
	case transfer.LayerVerifying:
		return layer("Verifying Checksum")
	case transfer.LayerDownloaded:
		return layer("Download complete")
	case transfer.LayerExtracting:
		return layer("Extracting")
	case transfer.LayerPulled:
		return layer("Pull complete")
	case transfer.Resolved:
		return status("Digest: %s", p.Digest)
	case transfer.Downloaded:
		return status("Status: Downloaded newer image for %s", p.Ref.Familiar())
	case transfer.UpToDate:
		return status("Status: Image is up to date for %s", p.Ref.Familiar())

	case transfer.PushStarted:
		return status("The push refers to repository [%s]", p.Ref.Name())
	case transfer.LayerPreparing:
		return layer("Preparing")
	case transfer.LayerPushing:
		return layer("Pushing")
	case transfer.LayerPushed:
		return layer("Pushed")
	case transfer.LayerPresent:
		return layer("Layer already exists")
	case transfer.LayerMounted:
		return layer("Mounted from " + p.From.Path())
	case transfer.ManifestLost:
		return status("The manifest %s is lost or damaged here; a new one is made.", p.Digest)
	case transfer.ManifestChanged:
		return status("A layer had to be compressed anew, so the manifest differs from the one pulled, %s.", p.Digest)
	case transfer.ManifestPushed:
		aux := pushResult{p.Ref.Tag(), p.Digest, int(p.Total)}
		return append(status("%s: digest: %s size: %d", aux.Tag, aux.Digest, aux.Size), stream.Message{Aux: aux, Progress: &stream.Progress{}})

	case transfer.LayerLoading:
		return layer("Loading layer")
	case transfer.ArtifactSkipped:
		return text("Skipped an artifact of type %s", p.MediaType)
	case transfer.NameMoved:
		return text("The image %s already exists, renaming the old one with ID %s to empty string", p.Ref.Familiar(), p.Image)
	case transfer.Loaded:
		if p.Ref.IsZero() {
			return text("Loaded image ID: %s", p.Image)
		}
		return text("Loaded image: %s", p.Ref.Familiar())

	case transfer.LayerImporting:
		return layer("Importing")
	}
	return nil
}
