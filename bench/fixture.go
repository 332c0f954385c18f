package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// layersOf lists the packages of each layer above the base system, about 1.4 GB unpacked in all.
var layersOf = []string{
	"gcc-12 g++-12 cpp-12 libgcc-12-dev libstdc++-12-dev binutils-x86-64-linux-gnu libbinutils libc6-dev linux-libc-dev",
	"llvm-14 llvm-14-dev libllvm14 llvm-14-tools",
	"openjdk-17-jdk-headless openjdk-17-jre-headless",
	"golang-1.19-go golang-1.19-src",
	"python3.11-minimal libpython3.11-stdlib python3-numpy python3-babel libpython3.11 git perl-modules-5.36 vim-runtime libboost1.74-dev",
}

func sh(dir, script string, args ...string) error {
	cmd := exec.Command("sh", append([]string{"-euc", script, "sh"}, args...)...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, out.String())
	}
	return nil
}

// makeImage writes an OCI layout to cache/oci-big.
func makeImage(cache string) error {
	if _, err := os.Stat(filepath.Join(cache, "oci-"+six.name, "index.json")); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "bench: making the image from Debian packages (once) …")
	if err := os.MkdirAll(filepath.Join(cache, "layers"), 0o755); err != nil {
		return err
	}
	var tars []string
	base := filepath.Join(cache, "layers", "0.tar")
	if _, err := os.Stat(base); err != nil {
		if err := sh(cache, `mmdebstrap --quiet --variant=minbase bookworm layers/0.tmp.tar && mv layers/0.tmp.tar layers/0.tar`); err != nil {
			return err
		}
	}
	tars = append(tars, base)
	for i, pkgs := range layersOf {
		name := filepath.Join(cache, "layers", fmt.Sprintf("%d.tar", i+1))
		if _, err := os.Stat(name); err != nil {
			err := sh(cache, `d=$(mktemp -d) && trap 'rm -rf "$d"' EXIT && mkdir "$d/debs" "$d/root" && chown _apt "$d/debs" 2>/dev/null || :
				(cd "$d/debs" && apt-get download -q `+pkgs+`)
				for f in "$d"/debs/*.deb; do dpkg-deb -x "$f" "$d/root"; done
				tar --sort=name --numeric-owner -C "$d/root" -cf "$1.tmp" . && mv "$1.tmp" "$1"`, name)
			if err != nil {
				return err
			}
		}
		tars = append(tars, name)
	}
	return writeLayout(filepath.Join(cache, "oci-"+six.name), tars)
}

// makeSmall writes a root file system with a shell to cache/small.tar.
func makeSmall(cache string) error {
	if _, err := os.Stat(filepath.Join(cache, "small.tar")); err == nil {
		return nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	return sh(cache, `d=$(mktemp -d) && trap 'rm -rf "$d"' EXIT && mkdir -p "$d/bin" && cp /bin/busybox "$d/bin/busybox" && for a in sh true cat dd sleep; do ln -s busybox "$d/bin/$a"; done && tar -C "$d" -cf small.tmp.tar . && mv small.tmp.tar small.tar`)
}

// makeMirror makes a Debian mirror in cache/mirror, with vim and what it needs above a minimal system.
func makeMirror(cache string) error {
	return sh(cache, `test -e mirror/Packages && exit
		d=$(mktemp -d mirror.XXXXXX) && trap 'rm -rf "$d"' EXIT && chmod 777 "$d"
		(cd "$d" && apt-get download -q vim vim-common vim-runtime libgpm2 libsodium23
		for f in *.deb; do
			dpkg-deb -f "$f" && echo "Filename: ./$f" && echo "Size: $(stat -c %s "$f")" && echo "SHA256: $(sha256sum "$f" | cut -d' ' -f1)" && echo
		done > Packages)
		chmod 755 "$d" && mv "$d" mirror`)
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func writeLayout(dir string, tars []string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	put := func(v any) (descriptor, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return descriptor{}, err
		}
		sum := sha256.Sum256(b)
		d := descriptor{Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(b))}
		return d, os.WriteFile(filepath.Join(blobs, hex.EncodeToString(sum[:])), b, 0o644)
	}
	var layers []descriptor
	var diffIDs []string
	for _, t := range tars {
		d, diffID, err := gzipLayer(t, blobs)
		if err != nil {
			return err
		}
		layers = append(layers, d)
		diffIDs = append(diffIDs, diffID)
	}
	config, err := put(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"bash"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	config.MediaType = "application/vnd.oci.image.config.v1+json"
	manifest, err := put(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
	})
	if err != nil {
		return err
	}
	manifest.MediaType = "application/vnd.oci.image.manifest.v1+json"
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "1"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644)
}

func gzipLayer(tar, blobs string) (_ descriptor, diffID string, err error) {
	in, err := os.Open(tar)
	if err != nil {
		return descriptor{}, "", err
	}
	defer in.Close()
	tmp, err := os.CreateTemp(blobs, "tmp")
	if err != nil {
		return descriptor{}, "", err
	}
	defer tmp.Close()
	plain, packed := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(tmp, packed))
	if _, err := io.Copy(io.MultiWriter(z, plain), in); err != nil {
		return descriptor{}, "", err
	}
	if err := z.Close(); err != nil {
		return descriptor{}, "", err
	}
	fi, err := tmp.Stat()
	if err != nil {
		return descriptor{}, "", err
	}
	sum := hex.EncodeToString(packed.Sum(nil))
	d := descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: "sha256:" + sum, Size: fi.Size()}
	return d, "sha256:" + hex.EncodeToString(plain.Sum(nil)), os.Rename(tmp.Name(), filepath.Join(blobs, sum))
}
