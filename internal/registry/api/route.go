package api

import (
	"net/http"
	"slices"
	"strings"

	"ply/internal/registry/access"
	"ply/internal/registry/content"
)

// kind is what a path stands for.
type kind int

const (
	kindNone kind = iota
	kindBase
	kindCatalog
	kindManifest
	kindBlob
	kindUploads
	kindUpload
	kindTags
	kindReferrers
	kindRepository
)

// kindNames name the kinds for metrics.
var kindNames = map[kind]string{
	kindNone: "none", kindBase: "base", kindCatalog: "catalog", kindManifest: "manifest", kindBlob: "blob", kindUploads: "uploads",
	kindUpload: "upload", kindTags: "tags", kindReferrers: "referrers", kindRepository: "repository",
}

// Route names the route of a path, for metrics.
func Route(path string) string { return kindNames[parsePath(path).kind] }

// Describe names what a request does to what, for the audit log. Change reports whether it changes something that is worth an entry when
// it is done, which the parts of an upload are not.
func Describe(r *http.Request) (action access.Action, repository, reference string, change bool) {
	t := parsePath(r.URL.Path)
	to, ok := routes[t.kind][r.Method]
	if !ok || to.action == "" {
		return access.Pull, t.name, "", false
	}
	switch {
	case t.kind == kindUploads:
		q := r.URL.Query()
		return to.action, t.name, q.Get("digest") + q.Get("mount"), q.Has("digest") || q.Has("mount")
	case t.kind == kindUpload:
		return to.action, t.name, r.URL.Query().Get("digest"), r.Method == http.MethodPut
	}
	return to.action, t.name, t.ref, to.action != access.Pull
}

// IsManifest reports whether a path is that of a manifest, which every pull reads.
func IsManifest(path string) bool { return parsePath(path).kind == kindManifest }

// target is a parsed path.
type target struct {
	kind kind
	name string // of the repository, not checked
	ref  string // tag, digest or ID of an upload, not checked
}

// Repositories are deleted at a path of our own, in the part of the name space that the specification leaves to extensions.
var repositorySuffix = []string{"_ply", "repository"}

// parsePath reads the path of a request from its end, because a repository may be named like a part of the protocol.
func parsePath(path string) target {
	rest, ok := strings.CutPrefix(path, "/v2")
	if !ok || rest != "" && rest[0] != '/' {
		return target{}
	}
	rest = strings.TrimPrefix(rest, "/")
	switch rest {
	case "":
		return target{kind: kindBase}
	case "_catalog":
		return target{kind: kindCatalog}
	}
	parts := strings.Split(rest, "/")
	n := len(parts)
	before := func(k int) string { return strings.Join(parts[:n-k], "/") }
	switch {
	case n > 2 && parts[n-2] == "tags" && parts[n-1] == "list":
		return target{kindTags, before(2), ""}
	case n > 2 && slices.Equal(parts[n-2:], repositorySuffix):
		return target{kindRepository, before(2), ""}
	case n > 3 && parts[n-3] == "blobs" && parts[n-2] == "uploads" && parts[n-1] == "":
		return target{kindUploads, before(3), ""}
	case n > 3 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		return target{kindUpload, before(3), parts[n-1]}
	case n > 2 && parts[n-2] == "blobs" && parts[n-1] == "uploads":
		return target{kindUploads, before(2), ""}
	case n > 2 && parts[n-2] == "manifests":
		return target{kindManifest, before(2), parts[n-1]}
	case n > 2 && parts[n-2] == "blobs":
		return target{kindBlob, before(2), parts[n-1]}
	case n > 2 && parts[n-2] == "referrers":
		return target{kindReferrers, before(2), parts[n-1]}
	}
	return target{}
}

// route is a method of a kind of path: the right that it needs, and the function that serves it.
type route struct {
	action access.Action // "" = none but to be let in
	serve  func(*Handler, *request) error
}

// routes is the whole protocol.
var routes = map[kind]map[string]route{
	kindBase:       {http.MethodGet: {"", (*Handler).base}, http.MethodHead: {"", (*Handler).base}},
	kindCatalog:    {http.MethodGet: {"", (*Handler).catalog}, http.MethodHead: {"", (*Handler).catalog}},
	kindTags:       {http.MethodGet: {access.Pull, (*Handler).tags}, http.MethodHead: {access.Pull, (*Handler).tags}},
	kindReferrers:  {http.MethodGet: {access.Pull, (*Handler).referrers}, http.MethodHead: {access.Pull, (*Handler).referrers}},
	kindRepository: {http.MethodDelete: {access.Delete, (*Handler).deleteRepository}},
	kindManifest: {
		http.MethodGet: {access.Pull, (*Handler).getManifest}, http.MethodHead: {access.Pull, (*Handler).getManifest},
		http.MethodPut: {access.Push, (*Handler).putManifest}, http.MethodDelete: {access.Delete, (*Handler).deleteManifest},
	},
	kindBlob: {
		http.MethodGet: {access.Pull, (*Handler).getBlob}, http.MethodHead: {access.Pull, (*Handler).headBlob},
		http.MethodDelete: {access.Delete, (*Handler).deleteBlob},
	},
	kindUploads: {http.MethodPost: {access.Push, (*Handler).beginUpload}},
	kindUpload: {
		http.MethodGet: {access.Push, (*Handler).getUpload}, http.MethodHead: {access.Push, (*Handler).getUpload},
		http.MethodPatch: {access.Push, (*Handler).patchUpload}, http.MethodPut: {access.Push, (*Handler).putUpload},
		http.MethodDelete: {access.Push, (*Handler).cancelUpload},
	},
}

// request is a request that was let in.
type request struct {
	w      http.ResponseWriter
	r      *http.Request
	caller access.Caller
	repo   content.Repository
	ref    string
}
