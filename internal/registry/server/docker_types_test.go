package server

import (
	"fmt"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/registry/content"
)

// Manifests of Docker's schema 2 and its lists are kept byte by byte, with what they refer to, for as long as a tag leads to them. A list is
// refused without its images, as another type, and manifests of schema 1 always.
func TestDockerTypes(t *testing.T) {
	s, address, _ := start(t, Options{Root: t.TempDir(), Untagged: true})
	c := newClient(address)
	defer c.http.CloseIdleConnections()
	put := func(ref, mediaType, doc string, status int) {
		t.Helper()
		_, err := c.want("PUT", "/v2/old/app/manifests/"+ref, []byte(doc), []string{"Content-Type: " + mediaType}, status)
		must(t, err)
	}
	get := func(ref, mediaType, doc string) {
		t.Helper()
		r, err := c.want("GET", "/v2/old/app/manifests/"+ref, nil, []string{"Accept: " + mediaType}, 200)
		must(t, err)
		if string(r.body) != doc || r.header.Get("Content-Type") != mediaType {
			t.Errorf("%s is %q of %s, want %q of %s", ref, r.body, r.header.Get("Content-Type"), doc, mediaType)
		}
	}
	collect := func() {
		t.Helper()
		later := time.Now().Add(time.Hour)
		_, err := s.Collector().Run(t.Context(), later, later)
		must(t, err)
	}
	config, layer := []byte("config"), []byte("layer")
	must(t, c.blob("old/app", config), c.blob("old/app", layer))
	image := "{\n   \"schemaVersion\": 2,\n   \"mediaType\": \"" + oci.MediaTypeDockerManifest + "\",\n   \"config\": " + describe(oci.MediaTypeDockerConfig, config) +
		",\n   \"layers\": [" + describe(oci.MediaTypeDockerLayerGzip, layer) + "]\n}"
	digest := string(content.SHA256.Of([]byte(image)))
	list := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"architecture":"amd64","os":"linux"}}]} `,
		oci.MediaTypeDockerManifestList, oci.MediaTypeDockerManifest, digest, len(image))
	put("all", oci.MediaTypeDockerManifestList, list, 404) // its image is not here yet
	put(digest, oci.MediaTypeDockerManifest, image, 201)
	put("all", oci.MediaTypeDockerManifestList, list, 201)
	put("x", oci.MediaTypeDockerManifest, list, 400)
	put("x", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`, 400)
	collect()
	get("all", oci.MediaTypeDockerManifestList, list)
	get(digest, oci.MediaTypeDockerManifest, image)
	_, err := c.pull("old/app", "all")
	must(t, err)
	_, err = c.want("DELETE", "/v2/old/app/manifests/all", nil, nil, 202)
	must(t, err)
	collect()
	_, err = c.want("GET", "/v2/old/app/manifests/"+digest, nil, nil, 404)
	must(t, err)
	_, err = c.want("GET", "/v2/old/app/blobs/"+string(content.SHA256.Of(layer)), nil, nil, 404)
	must(t, err)
}
