package web

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/search"
)

const (
	reposPage = 50
	tagsPage  = 50
	maxQuery  = 255 // bytes
	// glance is the size of a manifest, in bytes, above which lists do not look into it.
	glance = 1 << 20
)

func (v *visit) repositories() error {
	query := v.r.URL.Query()
	term := strings.ToLower(query.Get("q"))
	if len(term) > maxQuery {
		return errs.New(errs.Invalid, "the search has more than %d bytes", maxQuery)
	}
	n, err := v.pageNumber()
	if err != nil {
		return err
	}
	found, err := search.Find(v.r.Context(), v.h.metadata, v.caller, term)
	if err != nil {
		return err
	}
	pages := (len(found) + reposPage - 1) / reposPage
	from := min((min(n, 1<<20)-1)*reposPage, len(found))
	type row struct {
		Name       content.Repository
		Visibility string
	}
	rows := []row{}
	for _, repo := range found[from:min(from+reposPage, len(found))] {
		rows = append(rows, row{repo, v.visibility(repo)})
	}
	v.show("repositories", http.StatusOK, "Repositories", map[string]any{
		"Term": query.Get("q"), "Rows": rows, "Found": len(found), "Page": n, "Pages": pages, "Last": n >= pages,
	})
	return nil
}

// pageNumber returns which page of a list is wanted, from 1.
func (v *visit) pageNumber() (int, error) {
	s := v.r.URL.Query().Get("page")
	if s == "" {
		return 1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, errs.New(errs.Invalid, "the page must be a number from 1")
	}
	return n, nil
}

func (v *visit) visibility(repo content.Repository) string {
	if v.h.Namespaces == nil || v.h.Gate.IsOpen() {
		return ""
	}
	return v.h.Namespaces.Visibility(string(repo))
}

// below serves the pages below a repository: /r/NAME, /r/NAME/-/REFERENCE, and further ones below that.
func (v *visit) below() error {
	name, rest, has := strings.Cut(v.r.PathValue("path"), "/-/")
	repo, err := content.ParseRepository(name)
	if err != nil || !v.caller.May(repo, access.Pull) {
		return errNoPage
	}
	if !has {
		return v.repository(repo)
	}
	reference, view, _ := strings.Cut(rest, "/")
	m, err := v.resolve(repo, reference)
	if err != nil {
		return err
	}
	switch view {
	case "":
		return v.manifest(m)
	case "files":
		return v.files(m)
	case "compare":
		return v.compare(m)
	}
	return errNoPage
}

// tagRow is a tag in a list.
type tagRow struct {
	metadata.Tag
	Kind      string
	Size      int64 // of an image with its layers; 0 = not known
	Platforms []string
}

func (v *visit) repository(repo content.Repository) error {
	after := content.Tag(v.r.URL.Query().Get("after"))
	if after != "" {
		if _, err := content.ParseTag(string(after)); err != nil {
			return err
		}
	}
	ctx := v.r.Context()
	names, err := v.h.metadata.Tags(ctx, repo, after, tagsPage)
	if err != nil {
		return err
	}
	rows := []tagRow{}
	for _, name := range names {
		t, err := v.h.metadata.Tag(ctx, repo, name)
		if errors.Is(err, errs.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		row := tagRow{Tag: t}
		m, err := v.h.metadata.Manifest(ctx, repo, t.Digest)
		if err == nil {
			row.Kind = kindOf(m.MediaType, m.ArtifactType)
		}
		if err == nil && m.Size <= glance {
			if l, err := v.load(repo, t.Digest); err == nil {
				row.Size, row.Platforms = l.size(), l.platforms()
			}
		}
		rows = append(rows, row)
	}
	next := content.Tag("")
	if len(names) == tagsPage {
		next = names[len(names)-1]
	}
	example := content.Tag("latest")
	if len(names) > 0 {
		example = names[0]
	}
	v.show("repository", http.StatusOK, string(repo), map[string]any{
		"Repo": repo, "Rows": rows, "Next": next, "After": after, "Visibility": v.visibility(repo), "Example": example,
		"Pushes": v.caller.May(repo, access.Push), "Deletes": v.caller.May(repo, access.Delete),
	})
	return nil
}

// newRepository shows the lines that make a repository: it exists from its first push on.
func (v *visit) newRepository() error {
	name := strings.TrimSpace(v.r.URL.Query().Get("name"))
	data := map[string]any{"Name": name, "Namespaces": v.h.Namespaces != nil && v.caller.Name() != ""}
	if name != "" {
		repo, err := content.ParseRepository(name)
		switch {
		case err != nil:
			data["Error"] = err.Error()
		case !v.caller.May(repo, access.Push):
			data["Error"] = "You may not push to " + name + "."
		default:
			data["Repo"] = repo
		}
	}
	v.show("new", http.StatusOK, "New repository", data)
	return nil
}

// owner is a visitor whose rights go beyond repositories.
type owner interface {
	Owns(namespace string) bool
	Whole() bool
}

func (v *visit) setNamespace() error {
	name := v.r.PostForm.Get("name")
	o, ok := v.caller.(owner)
	if !ok || v.h.Namespaces == nil || !o.Whole() || !o.Owns(name) {
		return errs.New(errs.Forbidden, "you do not own the namespace %s", plain(name))
	}
	if err := v.h.Namespaces.SetVisibility(name, v.r.PostForm.Get("visibility")); err != nil {
		return err
	}
	http.Redirect(v.w, v.r, "/?"+url.Values{"q": {name}}.Encode(), http.StatusSeeOther)
	return nil
}

// change deletes what a form names, after its visitor has typed the name once more.
func (v *visit) change() error {
	repo, reference, ok := deletion(v.r.URL.Path)
	if !ok || !v.caller.May(repo, access.Pull) {
		return errNoPage
	}
	var d content.Digest
	var tag content.Tag
	confirm, back := string(repo), "/"
	if reference != "" {
		confirm, back = reference, pathTo(repo, "")
		var err error
		if d, tag, err = parseReference(reference); err != nil {
			return err
		}
	}
	if v.r.PostForm.Get("confirm") != confirm {
		return errs.New(errs.Invalid, "nothing is deleted: what you typed is not %s", confirm)
	}
	if err := v.h.Delete(v.r, v.caller, repo, d, tag); err != nil {
		return err
	}
	http.Redirect(v.w, v.r, back, http.StatusSeeOther)
	return nil
}

// deletion reads a path that deletes: /r/NAME/-/delete, or /r/NAME/-/REFERENCE/delete.
func deletion(path string) (repo content.Repository, reference string, ok bool) {
	path, below := strings.CutPrefix(path, "/r/")
	name, rest, _ := strings.Cut(path, "/-/")
	repo, err := content.ParseRepository(name)
	reference, ok = strings.CutSuffix("/"+rest, "/delete")
	return repo, strings.TrimPrefix(reference, "/"), ok && below && err == nil
}

// parseReference reads a digest or a tag.
func parseReference(s string) (content.Digest, content.Tag, error) {
	if strings.Contains(s, ":") {
		d, err := content.ParseDigest(s)
		return d, "", err
	}
	tag, err := content.ParseTag(s)
	return "", tag, err
}
