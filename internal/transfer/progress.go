package transfer

import (
	"strconv"

	"ply/internal/oci"
)

// State is what a transfer has reached. Its comment names the fields of Progress that it uses.
type State int

// The states. Those whose name begins with Layer are about one layer, which Progress.Layer names.
const (
	// A pull: first PullStarted; then the states of its layers; last Resolved and, after the last tag, Downloaded or UpToDate.
	PullStarted      State = iota + 1 // Ref: the registry knows this tag or digest
	LayerExists                       // the store has the layer
	LayerQueued                       // Size: the layer will be fetched
	LayerWaiting                      // other layers are transferred first; of a push too
	LayerDownloading                  // Current, Total, Kept
	LayerVerifying                    // all bytes are here; their digest is compared
	LayerDownloaded                   // the digest is right
	LayerExtracting                   // Current, Total: compressed bytes that were unpacked
	LayerPulled                       // the layer is durable
	Retrying                          // Current: seconds until the next try, as the registry does not answer. Layer may be "": a request about the whole. Of a push too
	Resolved                          // Digest: what the name means in the registry
	Downloaded                        // Ref: it means another image than before
	UpToDate                          // Ref: it means the same image as before

	// A push: first PushStarted; then the states of its layers; last ManifestPushed, once per tag.
	PushStarted     // Ref: the repository
	LayerPreparing  // the layer belongs to the image
	LayerPushing    // Current, Total
	LayerPushed     // all bytes were sent
	LayerPresent    // the repository has the layer
	LayerMounted    // From: the repository from which the registry took the layer
	ManifestLost    // Digest: the image's manifest is missing or damaged here, so a new one is made
	ManifestChanged // Digest: the image's manifest, which cannot be sent because a layer has other bytes now
	ManifestPushed  // Ref, Digest, Total: the manifest's size

	// A load: LayerLoading while layers are read; at the end the other states, once per image.
	LayerLoading    // Current, Total
	ArtifactSkipped // MediaType: the archive has something that is not an image
	NameMoved       // Ref, Image: the image that had the name before
	Loaded          // Ref, or Image when the archive names it by ID only

	// An import: LayerImporting while the root file system is read.
	LayerImporting // Current

	stateEnd
)

var stateNames = [stateEnd]string{
	PullStarted: "PullStarted", LayerExists: "LayerExists", LayerQueued: "LayerQueued", LayerWaiting: "LayerWaiting",
	LayerDownloading: "LayerDownloading", LayerVerifying: "LayerVerifying", LayerDownloaded: "LayerDownloaded",
	LayerExtracting: "LayerExtracting", LayerPulled: "LayerPulled", Retrying: "Retrying", Resolved: "Resolved", Downloaded: "Downloaded", UpToDate: "UpToDate",
	PushStarted: "PushStarted", LayerPreparing: "LayerPreparing", LayerPushing: "LayerPushing", LayerPushed: "LayerPushed",
	LayerPresent: "LayerPresent", LayerMounted: "LayerMounted", ManifestLost: "ManifestLost", ManifestChanged: "ManifestChanged",
	ManifestPushed: "ManifestPushed",
	LayerLoading:   "LayerLoading", ArtifactSkipped: "ArtifactSkipped", NameMoved: "NameMoved", Loaded: "Loaded",
	LayerImporting: "LayerImporting",
}

// String returns the name of the constant.
func (s State) String() string {
	if s <= 0 || s >= stateEnd {
		return "State(" + strconv.Itoa(int(s)) + ")"
	}
	return stateNames[s]
}

// States returns every state, for tests that must cover them all.
func States() []State {
	var all []State
	for s := State(1); s < stateEnd; s++ {
		all = append(all, s)
	}
	return all
}

// Counts reports whether the state is repeated with a growing Current, so that a later report may replace an earlier one.
func (s State) Counts() bool {
	switch s {
	case LayerDownloading, LayerExtracting, LayerPushing, LayerLoading, LayerImporting:
		return true
	}
	return false
}

// Progress reports one state of a pull, push, load or import. Package api/docker puts it into docker's words.
type Progress struct {
	State State
	Layer string // short name of a layer, unique in the transfer: 12 hex digits where it has a digest

	Current int64 // bytes
	Total   int64 // bytes; 0 = unknown
	Size    int64 // of LayerQueued: bytes that will be fetched, at most
	Kept    int64 // of LayerDownloading: bytes that an earlier pull fetched

	Ref       oci.Reference
	From      oci.Reference
	Digest    oci.Digest
	Image     oci.ImageID
	MediaType string
}

// Sink takes progress. It is called from several goroutines and must not block for long. It is never nil: use Discard.
type Sink func(Progress)

// Discard ignores progress.
func Discard(Progress) {}
