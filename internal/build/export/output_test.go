package export

import (
	"errors"
	"strings"
	"testing"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
)

func ref(t *testing.T, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParse(t *testing.T) {
	o, err := Parse("registry", map[string]string{
		"name": "example.com/a,example.com/b:2", "compression": "zstd", "compression-level": "7", "force-compression": "", "source-date-epoch": "1700000000",
		"rewrite-timestamp": "true", "annotation.a": "1", "annotation-index.b": "2", "annotation-manifest[linux/arm64].c": "3", "annotation-manifest-descriptor.d": "4",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.Kind != Image || !o.Push || o.Store || !o.Rewrite || o.Format != oci.FormatOCI || !o.Artifact || !o.NeedsManifest() {
		t.Errorf("got %+v", o)
	}
	if len(o.Names) != 2 || o.Names[0].String() != "example.com/a:latest" || o.Names[1].String() != "example.com/b:2" {
		t.Errorf("names: %v", o.Names)
	}
	if c := o.Compression; c.Codec != compress.Zstd || c.Level != 7 || !c.Force || !c.Asked {
		t.Errorf("compression: %+v", c)
	}
	if o.Epoch == nil || o.Epoch.Unix() != 1700000000 {
		t.Errorf("epoch: %v", o.Epoch)
	}
	if len(o.Annotations) != 4 {
		t.Errorf("annotations: %v", o.Annotations)
	}
	tagged, err := Parse("image", nil, []oci.Reference{ref(t, "app:1")})
	if err != nil || !tagged.Store || tagged.Push || tagged.NeedsManifest() || len(tagged.Names) != 1 {
		t.Errorf("image with tags: %+v, %v", tagged, err)
	}
}

// An attribute that is not known, and one that ply cannot do, is an error that names it.
func TestParseErrors(t *testing.T) {
	tests := []struct {
		typ   string
		attrs string
		want  string
		class error
	}{
		{"", "", "output type", errs.Invalid},
		{"squashfs", "", `"squashfs"`, errs.Invalid},
		{"image", "nmae=x", `"nmae"`, errs.Invalid},
		{"local", "name=x", `"name"`, errs.Invalid},
		{"local", "compression=gzip", `"compression"`, errs.Invalid},
		{"cacheonly", "push=true", `"push"`, errs.Invalid},
		{"tar", "mode=delete", "mode", errs.Invalid},
		{"local", "mode=move", "mode", errs.Invalid},
		{"local", "attestation-prefix=../", "attestation-prefix", errs.Invalid},
		{"oci", "push=true", `"push"`, errs.Invalid},
		{"docker", "tar=false", "tar=false", errs.Unimplemented},
		{"image", "push=maybe", "push=maybe", errs.Invalid},
		{"image", "push=true", "tag is needed", errs.Invalid},
		{"image", "store=false", "store=false", errs.Invalid},
		{"image", "name=x@sha256:1234", "name", errs.Invalid},
		{"image", "name=x:1 push=true push-by-digest=true", "tagged", errs.Invalid},
		{"image", "name=x push-by-digest=true", "push-by-digest=true conflicts", errs.Invalid},
		{"image", "compression=estargz", "estargz", errs.Unimplemented},
		{"image", "compression=lz4", `"lz4"`, errs.Invalid},
		{"image", "compression-level=0", "compression-level=0", errs.Invalid},
		{"image", "compression-level=10", "1 to 9", errs.Invalid},
		{"image", "compression=uncompressed compression-level=1", "compression-level", errs.Invalid},
		{"image", "compression=zstd oci-mediatypes=false", "compression=zstd conflicts", errs.Invalid},
		{"image", "oci-artifact=true oci-mediatypes=false", "oci-artifact=true conflicts", errs.Invalid},
		{"image", "registry.insecure=true", "registry.insecure", errs.Unimplemented},
		{"image", "prefer-nondist-layers=true", "prefer-nondist-layers", errs.Unimplemented},
		{"image", "annotation-layer.x=1", `"layer"`, errs.Invalid},
		{"image", "annotation-manifest[linux/]=1", "annotation", errs.Invalid},
		{"image", "source-date-epoch=now", "source-date-epoch", errs.Invalid},
		{"image", "dangling-name-prefix=UPPER", "dangling-name-prefix", errs.Invalid},
	}
	for _, tt := range tests {
		attrs := map[string]string{}
		for f := range strings.FieldsSeq(tt.attrs) {
			k, v, _ := strings.Cut(f, "=")
			attrs[k] = v
		}
		_, err := Parse(tt.typ, attrs, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.class) {
			t.Errorf("type=%s %s: %v, want %v with %q", tt.typ, tt.attrs, err, tt.class, tt.want)
		}
	}
}

func TestPackageURL(t *testing.T) {
	p := oci.Platform{OS: "linux", Architecture: "arm64"}
	for in, want := range map[string]string{
		"busybox":                        "pkg:docker/busybox@latest?platform=linux%2Farm64",
		"localhost:5000/a/b:1.2":         "pkg:docker/localhost%3A5000/a/b@1.2?platform=linux%2Farm64",
		"x@" + string(oci.DigestOf(nil)): "pkg:docker/x?digest=sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855&platform=linux%2Farm64",
	} {
		if got := PackageURL("docker", ref(t, in), &p); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
