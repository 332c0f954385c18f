package builder

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"ply/internal/cli/tarstream"
	"ply/internal/errs"
)

// maxDockerfile bounds a Dockerfile outside of the context, in bytes.
const maxDockerfile = 16 << 20

// buildContext is the context of a build: a tar stream, or a URL that the engine fetches.
type buildContext struct {
	tar        io.Reader // nil for a URL
	remote     string    // the URL
	dockerfile string    // name in the context
	closers    []io.Closer
}

func (b *buildContext) close() {
	for _, c := range b.closers {
		c.Close()
	}
}

// openContext opens the context at source: a directory, a URL, or "-" for a tar stream or a Dockerfile on stdin. file is the value of -f.
func openContext(source, file string, stdin io.Reader) (*buildContext, error) {
	switch {
	case source == "-":
		if file == "-" {
			return nil, errs.New(errs.Invalid, "invalid argument: can't use stdin for both build context and dockerfile")
		}
		return stdinContext(file, stdin)
	case remoteContext(source):
		return &buildContext{remote: source, dockerfile: filepath.ToSlash(file)}, nil
	}
	return dirContext(source, file, stdin)
}

// remoteContext reports whether the engine fetches the context.
func remoteContext(s string) bool {
	for _, p := range []string{"http://", "https://", "git://", "git@", "github.com/", "ssh://"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// stdinContext reads the context from stdin, or a Dockerfile that is then all of the context.
func stdinContext(file string, stdin io.Reader) (*buildContext, error) {
	head, br, err := peek(stdin)
	if err != nil {
		return nil, err
	}
	if isTar(head) {
		return &buildContext{tar: br, dockerfile: filepath.ToSlash(file)}, nil
	}
	if file != "" {
		return nil, errs.New(errs.Invalid, "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
	}
	text, err := readDockerfile(br)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := addBytes(tw, "Dockerfile", text); err != nil {
		return nil, err
	}
	return &buildContext{tar: &buf, dockerfile: "Dockerfile"}, tw.Close()
}

// peek returns the beginning of a stream, and the stream with it.
func peek(r io.Reader) (head []byte, whole io.Reader, err error) {
	br := bufio.NewReaderSize(r, 1024)
	head, err = br.Peek(512)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head, br, err
}

// isTar reports whether head is the beginning of a tar stream, plain or compressed.
func isTar(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}

func readDockerfile(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err == nil && len(b) > maxDockerfile {
		err = errs.New(errs.Invalid, "Dockerfile: larger than %d bytes", maxDockerfile)
	}
	return b, err
}

// addBytes writes a file to tw.
func addBytes(tw *tar.Writer, name string, b []byte) error {
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := tw.Write(b)
	return err
}

// contextDir returns the path of a context, without links.
func contextDir(dir string) (string, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", errs.New(errs.NotFound, "unable to prepare context: path %q not found", dir)
	}
	if root, err = filepath.Abs(root); err != nil {
		return "", err
	}
	if st, err := os.Stat(root); err != nil || !st.IsDir() {
		return "", errs.New(errs.Invalid, "unable to prepare context: context must be a directory: %s", dir)
	}
	return root, nil
}

// dirContext packs a directory, without the files that .dockerignore names.
func dirContext(dir, file string, stdin io.Reader) (*buildContext, error) {
	root, err := contextDir(dir)
	if err != nil {
		return nil, err
	}
	name, extra, err := findDockerfile(root, file, stdin)
	if err != nil {
		return nil, err
	}
	patterns, err := ignorePatterns(root, name)
	if err != nil {
		return nil, err
	}
	if extra == nil {
		patterns = append(patterns, "!"+name) // the builder needs the Dockerfile even when a pattern excludes it
	}
	patterns = append(patterns, "!.dockerignore")
	pm, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, errs.New(errs.Invalid, ".dockerignore: %w", err)
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(packContext(pw, root, pm, name, extra)) }()
	return &buildContext{tar: pr, dockerfile: name, closers: []io.Closer{pr}}, nil
}

// findDockerfile returns the name of the Dockerfile in the context. A Dockerfile outside of root gets a new name, and extra is its text.
func findDockerfile(root, file string, stdin io.Reader) (name string, extra []byte, err error) {
	outside := func(r io.Reader) (string, []byte, error) {
		b, err := readDockerfile(r)
		if err != nil {
			return "", nil, err
		}
		var id [10]byte
		rand.Read(id[:])
		return ".dockerfile." + hex.EncodeToString(id[:]), b, nil
	}
	if file == "-" {
		return outside(stdin)
	}
	real, err := dockerfilePath(root, file)
	if err != nil {
		return "", nil, err
	}
	if rel, rerr := filepath.Rel(root, real); rerr == nil && filepath.IsLocal(rel) {
		return filepath.ToSlash(rel), nil, nil
	}
	f, err := os.Open(real)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	return outside(f)
}

// dockerfilePath returns the path of the Dockerfile, without links. file is the value of -f.
func dockerfilePath(root, file string) (string, error) {
	p := file
	if p == "" {
		p = filepath.Join(root, "Dockerfile")
	} else if _, serr := os.Lstat(p); serr != nil && !filepath.IsAbs(p) {
		p = filepath.Join(root, file) // docker also accepts a path relative to the context
	}
	real, err := filepath.EvalSymlinks(p)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", errs.New(errs.NotFound, "unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat %s: no such file or directory", p)
	}
	return real, nil
}

// ignorePatterns reads the patterns of .dockerignore, or of the one that belongs to the Dockerfile.
func ignorePatterns(root, dockerfile string) ([]string, error) {
	for _, n := range []string{dockerfile + ".dockerignore", ".dockerignore"} {
		f, err := os.Open(filepath.Join(root, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		list, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%s: %w", n, err)
		}
		return list, nil
	}
	return nil, nil
}

// packContext writes the files below root that pm does not exclude, and extra, when it is not nil, as the Dockerfile.
func packContext(w io.Writer, root string, pm *patternmatcher.PatternMatcher, dockerfile string, extra []byte) error {
	tw := tar.NewWriter(w)
	links := tarstream.Links{}
	parents := map[string]patternmatcher.MatchInfo{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil || rel == "." {
			return err
		}
		skip, info, err := pm.MatchesUsingParentResults(rel, parents[filepath.Dir(rel)])
		if err != nil {
			return err
		}
		if d.IsDir() {
			parents[rel] = info
		}
		if skip {
			if d.IsDir() && !pm.Exclusions() {
				return filepath.SkipDir
			}
			return nil
		}
		st, err := d.Info()
		if err != nil || st.Mode()&fs.ModeSocket != 0 {
			return err
		}
		return links.Add(tw, file, filepath.ToSlash(rel), st)
	})
	if err == nil && extra != nil {
		err = addBytes(tw, dockerfile, extra)
	}
	return errors.Join(err, tw.Close())
}

// packer returns the function that writes the tar of a directory of the client. Of the directory of the Dockerfile only the files are
// sent that have its name, and what the context ignores is not sent.
func packer(options map[string]string) func(ctx context.Context, w io.Writer, name, dir string) error {
	file := options["filename"]
	return func(_ context.Context, w io.Writer, name, dir string) error {
		var patterns []string
		switch name {
		case "dockerfile":
			patterns = []string{"*"}
			for _, n := range []string{file, file + ".dockerignore", ".dockerignore"} {
				patterns = append(patterns, "!"+n)
			}
		case "context":
			if _, err := os.Stat(filepath.Join(dir, file+".dockerignore")); err == nil {
				break // the engine reads it
			}
			var err error
			if patterns, err = ignorePatterns(dir, file); err != nil {
				return err
			}
			patterns = append(patterns, "!.dockerignore", "!"+file)
		}
		pm, err := patternmatcher.New(patterns)
		if err != nil {
			return errs.New(errs.Invalid, ".dockerignore: %w", err)
		}
		return packContext(w, dir, pm, "", nil)
	}
}
