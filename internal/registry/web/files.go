package web

import (
	"archive/tar"
	"errors"
	"net/http"
	"path"
	"strings"
	"unicode/utf8"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

const maxListed = 5000 // files of one directory

// kindNames name the types of files.
var kindNames = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "directory", tar.TypeSymlink: "symbolic link", tar.TypeLink: "hard link", tar.TypeChar: "character device",
	tar.TypeBlock: "block device", tar.TypeFifo: "pipe",
}

// files shows a directory of a layer, or a file with its text.
func (v *visit) files(m *manifest) error {
	query := v.r.URL.Query()
	d, err := content.ParseDigest(query.Get("layer"))
	if err != nil {
		return errNoPage
	}
	number := 0
	for i, b := range m.Parsed.Blobs {
		if b.Digest == d {
			number = i // the config is the first
		}
	}
	if number == 0 && (len(m.Parsed.Blobs) == 0 || m.Parsed.Blobs[0].Digest != d) {
		return errNoPage
	}
	where := cleanPath(query.Get("path"))
	data := map[string]any{"M": m, "Layer": d, "Number": number, "Path": where, "Size": m.Parsed.Blobs[number].Size, "Parents": parents(where)}
	if number == 0 || !strings.Contains(m.Parsed.Blobs[number].MediaType, "tar") {
		return v.document(m, d, data)
	}
	t, err := v.h.trees.read(v.r.Context(), v.h.Repositories, m.Repo, d)
	if errors.Is(err, errs.NotFound) {
		err = errs.New(errs.Conflict, "the bytes of this layer are not in this registry")
	}
	if err != nil {
		return err
	}
	data["Cut"] = t.cut
	if i, ok := t.index(where); ok && !t.entries[i].Dir() {
		return v.file(m, d, &t.entries[i], data)
	}
	list := t.below(where)
	if len(list) == 0 && where != "" {
		if _, ok := t.index(where); !ok {
			return errNoPage
		}
	}
	if len(list) > maxListed {
		list, data["Cut"] = list[:maxListed], true
	}
	data["Entries"] = list
	v.show("files", http.StatusOK, "Files of layer "+short(d), data)
	return nil
}

// parent is a directory on the way to a file.
type parent struct{ Name, Path string }

func parents(where string) (list []parent) {
	if where == "" {
		return nil
	}
	at := ""
	for part := range strings.SplitSeq(where, "/") {
		at = path.Join(at, part)
		list = append(list, parent{part, at})
	}
	return list
}

func (v *visit) file(m *manifest, d content.Digest, e *entry, data map[string]any) error {
	data["File"], data["FileKind"] = e, kindNames[e.Kind]
	if e.Kind == tar.TypeReg {
		b, err := v.h.trees.text(v.r.Context(), v.h.Repositories, m.Repo, d, e)
		if err != nil {
			return err
		}
		data["Text"], data["Binary"] = text(b)
		data["More"] = int64(len(b)) < e.Size
	}
	v.show("files", http.StatusOK, "File "+plain(e.Name()), data)
	return nil
}

// text returns what is shown of a file, and whether it is none that can be shown.
func text(b []byte) (s string, binary bool) {
	cut := b
	for n := 0; len(b) == maxText && n < utf8.UTFMax && !utf8.Valid(cut); n++ { // the limit may divide a character
		cut = cut[:len(cut)-1]
	}
	if !utf8.Valid(cut) || strings.ContainsRune(string(cut), 0) {
		return "", true
	}
	return plain(string(cut)), false
}

// document shows a blob that is no archive: a config, an attestation, a signature.
func (v *visit) document(m *manifest, d content.Digest, data map[string]any) error {
	if m.Parsed.Blobs[data["Number"].(int)].Size > maxText { //nolint:forcetypeassert // files has set it
		data["Binary"] = true
	} else {
		b, err := v.blob(m.Repo, d, maxText)
		if errors.Is(err, errs.NotFound) {
			err = errs.New(errs.Conflict, "these bytes are not in this registry")
		}
		if err != nil {
			return err
		}
		if s := indented(b); s != "" {
			b = []byte(s)
		}
		data["Text"], data["Binary"] = text(b)
	}
	data["Document"] = true
	v.show("files", http.StatusOK, "Content "+short(d), data)
	return nil
}
