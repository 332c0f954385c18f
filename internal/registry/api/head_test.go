package api_test

import (
	"maps"
	"net/http"
	"testing"
)

// HEAD answers with the status and the headers of GET and without a body, everywhere.
func TestHead(t *testing.T) {
	w := newWorld(t)
	w.push("a", "config", "layer")
	w.push("b", "config")
	doc := image("", "config", "layer")
	w.put("a", "x", doc)
	w.put("a", "y", doc)
	w.put("b", "x", image("", "config"))
	upload := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").Header.Get("Location")
	w.want(202, "", "PATCH", upload, "begun")
	for path, status := range map[string]int{
		"/v2/": 200, "/v2/_catalog": 200, "/v2/_catalog?n=1": 200, "/v2/_catalog?n=-1": 400, "/v2/a/tags/list": 200, "/v2/a/tags/list?n=1": 200, "/v2/absent/tags/list": 404,
		"/v2/a/manifests/x": 200, "/v2/a/manifests/" + sum(doc): 200, "/v2/a/manifests/absent": 404, "/v2/a/blobs/" + sum("layer"): 200, "/v2/a/blobs/" + sum("absent"): 404,
		"/v2/a/referrers/" + sum(doc): 200, "/v2/a/referrers/" + sum(doc) + "?artifactType=x": 200, "/v2/a/referrers/x": 400, upload: 204, upload + "x": 404, "/v2/absent": 404,
		"/v2/a/_ply/repository": 405, "/v2/a/blobs/uploads/": 405,
	} {
		get, head := w.do(http.MethodGet, path, ""), w.do(http.MethodHead, path, "")
		if get.StatusCode != status || head.StatusCode != status || head.body != "" {
			t.Errorf("%s: GET %d, HEAD %d with the body %q, want %d", path, get.StatusCode, head.StatusCode, head.body, status)
		}
		for _, h := range []http.Header{get.Header, head.Header} {
			h.Del("Date")
		}
		if !maps.EqualFunc(get.Header, head.Header, func(a, b []string) bool { return len(a) == 1 && len(b) == 1 && a[0] == b[0] }) {
			t.Errorf("%s: GET has the headers\n%v\nHEAD\n%v", path, get.Header, head.Header)
		}
	}
}
