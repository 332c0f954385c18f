package contexts

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"path"

	"ply/internal/errs"
)

// tlsPrefix is where the files for TLS are in an archive.
const tlsPrefix = "tls/docker/"

// Export writes a context as a tar: meta.json, and its files for TLS.
func Export(w io.Writer, c *Context) error {
	doc, err := c.encode()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	file := func(name string, b []byte) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		_, err := tw.Write(b)
		return err
	}
	if err := file("meta.json", doc); err != nil {
		return err
	}
	for _, dir := range []string{"tls", "tls/docker"} {
		if len(c.TLS) == 0 {
			break
		}
		if err := tw.WriteHeader(&tar.Header{Name: dir, Mode: 0o700, Typeflag: tar.TypeDir}); err != nil {
			return err
		}
	}
	for _, name := range []string{CA, Cert, Key} {
		if b, ok := c.TLS[name]; ok {
			if err := file(tlsPrefix+name, b); err != nil {
				return err
			}
		}
	}
	return tw.Close()
}

// Import reads a context from a tar or zip archive of at most maxFile bytes, and gives it a name.
func Import(r io.Reader, name string) (*Context, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	b, err := readAll(r, "the archive")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	if bytes.HasPrefix(b, []byte("PK")) {
		err = readZip(b, files)
	} else {
		err = readTar(b, files)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "archive of a context: %w", err)
	}
	doc, ok := files["meta.json"]
	if !ok {
		return nil, errs.New(errs.Invalid, "archive of a context: it has no meta.json")
	}
	c, err := decode(doc)
	if err != nil {
		return nil, err
	}
	c.Name, c.TLS = name, map[string][]byte{}
	for _, f := range []string{CA, Cert, Key} {
		if b, ok := files[tlsPrefix+f]; ok {
			c.TLS[f] = b
		}
	}
	return c, nil
}

// wanted reports whether a file of an archive belongs to a context. Others are skipped; a path that leaves the archive is an error.
func wanted(name string) (string, bool, error) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || len(clean) > 3 && clean[:3] == "../" {
		return "", false, errs.New(errs.Invalid, "%.100q leads out of the archive", name)
	}
	return clean, clean == "meta.json" || path.Dir(clean)+"/" == tlsPrefix, nil
}

func readTar(b []byte, files map[string][]byte) error {
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name, ok, err := wanted(h.Name)
		if err != nil {
			return err
		}
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		if files[name], err = readAll(tr, name); err != nil {
			return err
		}
	}
}

func readZip(b []byte, files map[string][]byte) error {
	zr, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	for _, f := range zr.File {
		name, ok, err := wanted(f.Name)
		if err != nil {
			return err
		}
		if !ok || !f.Mode().IsRegular() || files[name] != nil {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		files[name], err = readAll(r, name)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}
