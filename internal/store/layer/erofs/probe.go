package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/mount"
	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

// Probe reports whether this driver works on root, and if not why. It creates root when it does not exist, mounts a tiny
// layer on it and writes to an overlay over that layer.
func Probe(root string) (ok bool, why string) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return false, err.Error()
	}
	if _, err := probe(root, false); err != nil {
		return false, err.Error()
	}
	return true, ""
}

type probed struct {
	fsType   string
	attached bool // the kernel cannot stack detached mounts
	buffered bool // direct access does not work, as on disks with sectors of 4 KiB
}

// probe tries direct access and, when that fails or buffered is true, buffered access.
func probe(root string, buffered bool) (probed, error) {
	if !buffered {
		if p, err := tryProbe(root, true); err == nil {
			return p, nil
		}
	}
	p, err := tryProbe(root, false)
	p.buffered = true
	return p, err
}

const probeText = "ply"

func tryProbe(root string, direct bool) (p probed, err error) {
	if os.Geteuid() != 0 {
		return p, errors.New("needs root")
	}
	if p.fsType, err = mount.Kind(root); err != nil {
		return p, err
	}
	dir := durable.TempName(root)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	img, device, err := probeLayer(dir)
	if err != nil {
		return p, err
	}
	tree, err := mount.Erofs{Image: img, Devices: []string{device}, DirectIO: direct}.Mount()
	if err != nil {
		return p, fmt.Errorf("%w: %s", err, hintFor(err, p.fsType))
	}
	defer tree.Close()
	err = probeStack(dir, mount.Of(tree))
	if err == nil {
		return p, nil
	}
	point := filepath.Join(dir, "mount")
	if merr := errors.Join(os.Mkdir(point, 0o700), tree.Attach(point)); merr != nil {
		return p, errors.Join(err, merr)
	}
	err = errors.Join(probeStack(dir, mount.At(point)), mount.Unmount(point, true))
	p.attached = err == nil
	return p, err
}

// hintFor returns the usual cause of an error of mounting.
func hintFor(err error, fsType string) string {
	switch {
	case errors.Is(err, unix.ENODEV):
		return "the kernel has no EROFS"
	case errors.Is(err, unix.EPERM):
		return "mounting is not allowed here"
	case errors.Is(err, unix.ENOTBLK), errors.Is(err, unix.ENOENT):
		return "EROFS on a file needs Linux 6.12 or later and ext4, xfs or btrfs below; this is " + fsType
	}
	return "EROFS on files of " + fsType + " does not work"
}

// probeLayer writes a layer with one file.
func probeLayer(dir string) (img, device string, err error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(probeText))})
	if err == nil {
		_, err = io.WriteString(w, probeText)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return "", "", err
	}
	device, img = filepath.Join(dir, "tar"), filepath.Join(dir, "index")
	if err := os.WriteFile(device, buf.Bytes(), 0o600); err != nil {
		return "", "", err
	}
	tree := image.NewTree()
	err = tarscan.Scan(&buf, tarscan.Limits{}, func(e *tarscan.Entry, _ io.Reader) error {
		return tree.Add(e, image.Extent{Device: 1, Offset: e.Offset})
	})
	if err != nil {
		return "", "", err
	}
	f, err := os.Create(img)
	if err != nil {
		return "", "", err
	}
	size, err := os.Stat(device)
	if err == nil {
		_, err = tree.Write(f, [16]byte{1}, []image.Device{{Tag: "tar", Size: size.Size()}})
	}
	return img, device, errors.Join(err, f.Close())
}

// probeStack mounts an overlay over the layer, opens its file for writing, and reads the file.
func probeStack(dir string, below mount.Layer) (err error) {
	up, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{up, work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	tree, err := mount.Overlay{Lower: []mount.Layer{below}, Upper: up, Work: work}.Mount()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	root, err := tree.Open()
	if err != nil {
		return err
	}
	defer root.Close()
	fd, err := openBelow(root, "f", unix.O_RDWR)
	if err != nil {
		return fmt.Errorf("write over a layer: %w", err)
	}
	f := os.NewFile(uintptr(fd), "f")
	defer f.Close()
	got, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return err
	}
	if string(got) != probeText {
		return fmt.Errorf("a layer reads as %q, want %q", got, probeText)
	}
	return nil
}
