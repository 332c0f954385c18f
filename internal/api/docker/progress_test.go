package docker

import (
	"encoding/json"
	"strings"
	"testing"

	"ply/internal/oci"
	"ply/internal/transfer"
)

// The messages about every state of a transfer are Docker's, byte for byte, with two sizes more for ply.
func TestWordsOfEveryState(t *testing.T) {
	const (
		layer  = "0123456789ab"
		digest = oci.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	)
	mysql, byDigest, mirror := ref("mysql:8"), ref("mysql@"+string(digest)), ref("r.example:5000/a/b:1")
	type progress = transfer.Progress
	said := map[transfer.State]bool{}
	for _, c := range []struct {
		p    progress
		want string
	}{
		{progress{State: transfer.PullStarted, Ref: mysql}, `{"status":"Pulling from library/mysql","id":"8"}`},
		{progress{State: transfer.PullStarted, Ref: byDigest}, `{"status":"Pulling from library/mysql","id":"docker.io/library/mysql@` + string(digest) + `"}`},
		{progress{State: transfer.LayerExists, Layer: layer}, `{"status":"Already exists","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerQueued, Layer: layer}, `{"status":"Pulling fs layer","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerQueued, Layer: layer, Size: 9}, `{"status":"Pulling fs layer","progressDetail":{"size":9},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerDownloading, Layer: layer, Current: 5, Total: 9, Kept: 4}, `{"status":"Downloading","progressDetail":{"current":5,"total":9,"kept":4},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerWaiting, Layer: layer}, `{"status":"Waiting","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerDownloading, Layer: layer, Current: 5, Total: 10}, `{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerVerifying, Layer: layer}, `{"status":"Verifying Checksum","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerDownloaded, Layer: layer}, `{"status":"Download complete","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerExtracting, Layer: layer, Current: 10, Total: 10}, `{"status":"Extracting","progressDetail":{"current":10,"total":10},"id":"0123456789ab"}`},
		{progress{State: transfer.Retrying, Layer: layer, Current: 5}, `{"status":"Retrying in 5 seconds","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.Retrying, Layer: layer, Current: 1}, `{"status":"Retrying in 1 second","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.Retrying, Current: 15}, `{"status":"Retrying in 15 seconds"}`},
		{progress{State: transfer.LayerPulled, Layer: layer}, `{"status":"Pull complete","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.Resolved, Digest: digest}, `{"status":"Digest: ` + string(digest) + `"}`},
		{progress{State: transfer.Downloaded, Ref: mysql}, `{"status":"Status: Downloaded newer image for mysql:8"}`},
		{progress{State: transfer.Downloaded, Ref: mysql.Repository()}, `{"status":"Status: Downloaded newer image for mysql"}`},
		{progress{State: transfer.UpToDate, Ref: byDigest}, `{"status":"Status: Image is up to date for mysql@` + string(digest) + `"}`},

		{progress{State: transfer.PushStarted, Ref: mirror}, `{"status":"The push refers to repository [r.example:5000/a/b]"}`},
		{progress{State: transfer.PushStarted, Ref: mysql}, `{"status":"The push refers to repository [docker.io/library/mysql]"}`},
		{progress{State: transfer.LayerPreparing, Layer: layer}, `{"status":"Preparing","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerPushing, Layer: layer, Current: 1 << 20, Total: 1 << 21}, `{"status":"Pushing","progressDetail":{"current":1048576,"total":2097152},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerPushed, Layer: layer}, `{"status":"Pushed","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerPresent, Layer: layer}, `{"status":"Layer already exists","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.LayerMounted, Layer: layer, From: mirror}, `{"status":"Mounted from a/b","progressDetail":{},"id":"0123456789ab"}`},
		{progress{State: transfer.ManifestLost, Digest: digest}, `{"status":"The manifest ` + string(digest) + ` is lost or damaged here; a new one is made."}`},
		{progress{State: transfer.ManifestChanged, Digest: digest}, `{"status":"A layer had to be compressed anew, so the manifest differs from the one pulled, ` + string(digest) + `."}`},
		{progress{State: transfer.ManifestPushed, Ref: mirror, Digest: digest, Total: 741}, `{"status":"1: digest: ` + string(digest) + ` size: 741"}` + "\n" +
			`{"progressDetail":{},"aux":{"Tag":"1","Digest":"` + string(digest) + `","Size":741}}`},

		{progress{State: transfer.LayerLoading, Layer: layer, Current: 4, Total: 8}, `{"status":"Loading layer","progressDetail":{"current":4,"total":8},"id":"0123456789ab"}`},
		{progress{State: transfer.ArtifactSkipped, MediaType: "application/vnd.x+json"}, `{"stream":"Skipped an artifact of type application/vnd.x+json\n"}`},
		{progress{State: transfer.NameMoved, Ref: mysql, Image: oci.ImageID(digest)}, `{"stream":"The image mysql:8 already exists, renaming the old one with ID ` + string(digest) + ` to empty string\n"}`},
		{progress{State: transfer.Loaded, Ref: mysql, Image: oci.ImageID(digest)}, `{"stream":"Loaded image: mysql:8\n"}`},
		{progress{State: transfer.Loaded, Image: oci.ImageID(digest)}, `{"stream":"Loaded image ID: ` + string(digest) + `\n"}`},

		{progress{State: transfer.LayerImporting, Layer: "-", Current: 7}, `{"status":"Importing","progressDetail":{"current":7},"id":"-"}`},
	} {
		said[c.p.State] = true
		var got []string
		for _, m := range messages(c.p) {
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(b))
		}
		if text := strings.Join(got, "\n"); text != c.want {
			t.Errorf("state %d:\n got %s\nwant %s", c.p.State, text, c.want)
		}
	}
	for _, s := range transfer.States() {
		if !said[s] {
			t.Errorf("state %d is not in the table", s)
		}
		for _, current := range []int64{0, 1} {
			p := progress{State: s, Layer: layer, Current: current, Ref: mysql, From: mysql}
			if m := messages(p); len(m) == 0 {
				t.Errorf("state %d has no words", s)
			} else if counts := counterOf(p) != 0; counts != (s.Counts() && current > 0) {
				t.Errorf("state %d with current %d: a newer message replaces it: %v", s, current, counts)
			}
		}
	}
}
