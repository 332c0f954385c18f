// Package contexts reads and writes contexts: named engines, in the store that docker's client uses, the directory contexts beside config.json.
//
// A context is a document, meta.json, and files for TLS, in directories named after the digest of its name. Both clients read what the other wrote. The context
// default is not stored: it is the engine that is used without a context. Fields of a document that are not known here are kept.
package contexts

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ply/internal/errs"
)

// Default is the name of the context that is not stored.
const Default = "default"

// maxFile bounds each file of a context, in bytes.
const maxFile = 10 << 20

// TLS files of an endpoint.
const (
	CA   = "ca.pem"
	Cert = "cert.pem"
	Key  = "key.pem"
)

// namePattern is docker's rule for names.
const namePattern = `^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$`

var validName = regexp.MustCompile(namePattern)

// Endpoint is how the engine of a context is reached.
type Endpoint struct {
	Host          string
	SkipTLSVerify bool
}

// Context is one context.
type Context struct {
	Name        string
	Description string
	Endpoint    Endpoint
	TLS         map[string][]byte // by the names of its files; nil or empty = no TLS material

	metadata  map[string]json.RawMessage // other fields of Metadata
	endpoints map[string]json.RawMessage // of other kinds
}

// document is meta.json.
type document struct {
	Name      string
	Metadata  map[string]json.RawMessage
	Endpoints map[string]json.RawMessage
}

// Store is the directory of contexts.
type Store struct{ dir string }

// Open returns the store below the directory of config.json.
func Open(configDir string) *Store { return &Store{filepath.Join(configDir, "contexts")} }

// CheckName returns an error for a name that no stored context may have.
func CheckName(name string) error {
	switch {
	case name == "":
		return errs.New(errs.Invalid, "context name cannot be empty")
	case name == Default:
		return errs.New(errs.Invalid, `"default" is a reserved context name`)
	case len(name) > 255 || !validName.MatchString(name):
		return errs.New(errs.Invalid, "context name %q is invalid, names are validated against regexp %q", name, namePattern)
	}
	return nil
}

func id(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// MetadataPath returns the directory of the document of a context, TLSPath that of its files for TLS.
func (s *Store) MetadataPath(name string) string { return filepath.Join(s.dir, "meta", id(name)) }

// TLSPath is described at MetadataPath.
func (s *Store) TLSPath(name string) string { return filepath.Join(s.dir, "tls", id(name)) }

// Get reads a context. errs.NotFound when there is none.
func (s *Store) Get(name string) (*Context, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	c, err := read(filepath.Join(s.MetadataPath(name), "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "context %q does not exist", name).WithHint("See: ply context ls")
	}
	if err == nil && c.Name != name {
		err = errs.New(errs.DataLoss, "its document is that of context %q", c.Name)
	}
	if err == nil {
		c.TLS, err = readTLS(filepath.Join(s.TLSPath(name), "docker"))
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "context %q: %w", name, err)
	}
	return c, nil
}

func read(path string) (*Context, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return decode(b)
}

func decode(b []byte) (*Context, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, errs.New(errs.Invalid, "meta.json: %w", err)
	}
	c := &Context{Name: d.Name, metadata: d.Metadata, endpoints: d.Endpoints}
	if raw, ok := d.Metadata["Description"]; ok {
		if err := json.Unmarshal(raw, &c.Description); err != nil {
			return nil, errs.New(errs.Invalid, "meta.json: description: %w", err)
		}
	}
	if raw, ok := d.Endpoints["docker"]; ok {
		if err := json.Unmarshal(raw, &c.Endpoint); err != nil {
			return nil, errs.New(errs.Invalid, "meta.json: endpoint: %w", err)
		}
	}
	return c, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path)
}

func readAll(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = errs.New(errs.Invalid, "%s: is longer than %d bytes", name, maxFile)
	}
	return b, err
}

func readTLS(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range []string{CA, Cert, Key} {
		b, err := readFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = b
	}
	return files, nil
}

// encode returns the document of a context.
func (c *Context) encode() ([]byte, error) {
	d := document{Name: c.Name, Metadata: map[string]json.RawMessage{}, Endpoints: map[string]json.RawMessage{}}
	for k, v := range c.metadata {
		d.Metadata[k] = v
	}
	for k, v := range c.endpoints {
		d.Endpoints[k] = v
	}
	delete(d.Metadata, "Description")
	if c.Description != "" {
		b, err := json.Marshal(c.Description)
		if err != nil {
			return nil, err
		}
		d.Metadata["Description"] = b
	}
	endpoint := map[string]json.RawMessage{}
	if raw, ok := d.Endpoints["docker"]; ok {
		if err := json.Unmarshal(raw, &endpoint); err != nil {
			return nil, err
		}
	}
	for k, v := range map[string]any{"Host": c.Endpoint.Host, "SkipTLSVerify": c.Endpoint.SkipTLSVerify} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		endpoint[k] = b
	}
	b, err := json.Marshal(endpoint)
	if err != nil {
		return nil, err
	}
	d.Endpoints["docker"] = b
	return json.Marshal(d)
}

// Put writes a context: its files for TLS, and then the document by which it exists.
func (s *Store) Put(c *Context) error {
	if err := CheckName(c.Name); err != nil {
		return err
	}
	doc, err := c.encode()
	if err != nil {
		return errs.New(errs.Internal, "context %q: %w", c.Name, err)
	}
	tls := filepath.Join(s.TLSPath(c.Name), "docker")
	for _, name := range []string{CA, Cert, Key} {
		path := filepath.Join(tls, name)
		if b, ok := c.TLS[name]; ok {
			err = replace(path, b, 0o600)
		} else if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err != nil {
			return errs.New(errs.Unavailable, "context %q: %w", c.Name, err)
		}
	}
	if err := replace(filepath.Join(s.MetadataPath(c.Name), "meta.json"), doc, 0o644); err != nil {
		return errs.New(errs.Unavailable, "context %q: %w", c.Name, err)
	}
	return nil
}

// replace writes a file by renaming, and makes its directory.
func replace(path string, b []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Remove removes a context: first the document, then the files for TLS. errs.NotFound when there is none.
func (s *Store) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	dir := s.MetadataPath(name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "context %q does not exist", name)
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(s.TLSPath(name)))
}

// List returns all stored contexts by name, and the errors of those that cannot be read.
func (s *Store) List() (list []*Context, damaged []error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "meta"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, []error{err}
	}
	for _, e := range entries {
		c, err := read(filepath.Join(s.dir, "meta", e.Name(), "meta.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && id(c.Name) != e.Name() {
			err = errs.New(errs.DataLoss, "its document is that of context %q", c.Name)
		}
		if err != nil {
			damaged = append(damaged, fmt.Errorf("context in %s: %w", filepath.Join(s.dir, "meta", e.Name()), err))
			continue
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Context) int { return strings.Compare(a.Name, b.Name) })
	return list, damaged
}
