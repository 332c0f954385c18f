package docker

import (
	"encoding/json"
	"fmt"

	"ply/internal/transfer"
	"ply/internal/wire"
)

// sender sends a message to the client; see wire.Messages.
type sender func(m wire.Message, counter int)

// sink describes the progress of a transfer in Docker's words.
func sink(send sender) transfer.Sink {
	return func(p transfer.Progress) {
		for _, m := range messages(p) {
			send(m, counterOf(p))
		}
	}
}

// counterOf returns the counter of the messages about a state: only a number that grows may replace an older message.
func counterOf(p transfer.Progress) int {
	if p.State.Counts() && p.Current > 0 {
		return int(p.State)
	}
	return 0
}

// messages returns Docker's messages about a state, mostly one. Messages about a layer have an ID and a progress detail, those
// about a whole pull or push have a status, and those about a load are lines of text.
func messages(p transfer.Progress) []wire.Message {
	layer := func(words string) []wire.Message {
		return []wire.Message{{ID: p.Layer, Status: words, Detail: &wire.ProgressDetail{Current: p.Current, Total: p.Total, Size: p.Size, Kept: p.Kept}}}
	}
	status := func(format string, args ...any) []wire.Message {
		return []wire.Message{{Status: fmt.Sprintf(format, args...)}}
	}
	text := func(format string, args ...any) []wire.Message {
		return []wire.Message{{Stream: fmt.Sprintf(format, args...) + "\n"}}
	}
	switch p.State {
	case transfer.PullStarted:
		id := p.Ref.Tag()
		if p.Ref.Digest() != "" {
			id = p.Ref.String()
		}
		return []wire.Message{{ID: id, Status: "Pulling from " + p.Ref.Path()}}
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
	case transfer.Retrying:
		words := fmt.Sprintf("Retrying in %d seconds", p.Current)
		if p.Current == 1 {
			words = "Retrying in 1 second"
		}
		if p.Layer == "" {
			return status("%s", words)
		}
		return []wire.Message{{ID: p.Layer, Status: words, Detail: &wire.ProgressDetail{}}}
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
		aux := wire.PushResult{Tag: p.Ref.Tag(), Digest: p.Digest.String(), Size: int(p.Total)}
		return append(status("%s: digest: %s size: %d", aux.Tag, aux.Digest, aux.Size), wire.Message{Aux: rawJSON(aux), Detail: &wire.ProgressDetail{}})

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

// rawJSON returns the JSON of a value that can always be encoded.
func rawJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a bug
	}
	return b
}
