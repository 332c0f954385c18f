package oci

import (
	_ "crypto/sha512" // makes the algorithm known to the parser that ours is compared with
	"strings"
	"testing"

	"github.com/distribution/reference"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// references are texts at the edges of the grammar.
var references = []string{
	"", " ", "a", "mysql", "mysql:8", "mysql:8@sha256:" + hex64, "mysql@sha256:" + hex64, hex64, hex64[1:], strings.ToUpper(hex64),
	"library/mysql", "docker.io/mysql", "index.docker.io/mysql", "index.docker.io/a/b", "docker.io/library/mysql", "docker.io/library/a/b", "library/a/b",
	"localhost/a", "localhost", "localhost:5000", "localhost:5000/a", "localhost:5000/a:b", "localhost:/a", "localhost:x/a", "LOCALHOST/a",
	"a.b/c", "a.b", "a.b_c/d", "a_b.c/d", "a..b/c", "a-/b", "-a/b", "a-.b/c", "1.2.3.4/a", "1.2.3.4:80/a", "a.b:80/c:d@sha256:" + hex64,
	"[::1]/a", "[::1]:5000/a", "[::1]:/a", "[]/a", "[::1/a", "[g]/a", "[::1]a/b", "[::1]", "::1/a",
	"A/b", "A/B", "a/B", "a/B:C", "Mysql", "mysql:A", "mysql:a@b", "mysql:", "mysql:.", "mysql:-a", "mysql:_", "mysql:a:b", "mysql:a/b", "a:b/c",
	"a__b", "a___b", "a_b", "a--b", "a---b", "a.b.c", "a..b", "a._b", "a-_b", "_a", "a_", ".a", "a.", "-a", "a-", "a//b", "/a", "a/", "a/b/", "/", "//",
	"mysql:" + strings.Repeat("t", 128), "mysql:" + strings.Repeat("t", 129), "x.y/" + strings.Repeat("p", 255), "x.y/" + strings.Repeat("p", 256), strings.Repeat("p", 248),
	"mysql@", "mysql@sha256", "mysql@sha256:", "mysql@sha256:" + hex64[:32], "mysql@sha256:" + strings.ToUpper(hex64), "mysql@SHA256:" + hex64, "mysql@sha512:" + hex64 + hex64, "mysql@sha512:" + hex64,
	"mysql@md5:" + hex64[:32], "mysql@a+b.c-d_e:" + hex64, "mysql@a+:" + hex64, "mysql@+a:" + hex64, "mysql@1a:" + hex64, "mysql@a+1:" + hex64, "mysql@sha256:" + hex64 + "@sha256:" + hex64, "mysql@sha256:" + hex64 + ":a",
	"ä/b", "Ä/b", "mysql:ä", "a\n", "a\x00", "\xff", "a.b\xff/c", "İ/a", "mySQL\n", "localhost/İ",
}

// Ours reads every text as the package does that docker uses, or refuses it for the same reason.
func TestReferenceAsDockers(t *testing.T) {
	for _, s := range references {
		compare(t, s)
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range references {
		f.Add(s)
	}
	f.Fuzz(compare)
}

func compare(t *testing.T, s string) {
	ours, err := ParseReference(s)
	theirs, theirErr := reference.ParseNormalizedNamed(s)
	if theirErr != nil {
		if err == nil {
			t.Fatalf("%q is %q; docker's says %v", s, ours, theirErr)
		}
		if text := err.Error(); !strings.Contains(text, "digest") && len(s) < 80 && !strings.HasSuffix(text, theirErr.Error()) {
			t.Fatalf("%q: %q; docker's says %q", s, text, theirErr)
		}
		return
	}
	if d, ok := theirs.(reference.Digested); ok && checkDigest(d.Digest().String()) != nil {
		if err == nil {
			t.Fatalf("%q is %q, with a digest that is not SHA-256", s, ours)
		}
		return
	}
	if err != nil {
		t.Fatalf("%q: %v; docker's reads it as %q", s, err, theirs)
	}
	same := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Fatalf("%q: the %s is %q; docker's is %q", s, what, got, want)
		}
	}
	same("text", ours.String(), theirs.String())
	same("short form", ours.Familiar(), reference.FamiliarString(theirs))
	same("short name", ours.FamiliarName(), reference.FamiliarName(theirs))
	same("name", ours.Name(), theirs.Name())
	same("domain", ours.Domain(), reference.Domain(theirs))
	same("path", ours.Path(), reference.Path(theirs))
	same("default", ours.WithDefaultTag().String(), reference.TagNameOnly(theirs).String())
	same("repository", ours.Repository().String(), reference.TrimNamed(theirs).String())
	var tag string
	if v, ok := theirs.(reference.Tagged); ok {
		tag = v.Tag()
	}
	same("tag", ours.Tag(), tag)
	tagged, err := ours.WithTag("v1")
	if err != nil {
		t.Fatal(err)
	}
	same("reference with another tag", tagged.String(), theirs.Name()+":v1")
	same("reference with a digest", ours.WithDigest(digestPrefix+hex64).String(), theirs.Name()+"@"+digestPrefix+hex64)
	if again, err := ParseReference(ours.String()); err != nil || again != ours {
		t.Fatalf("%q: its text is read as %q, %v", s, again, err)
	}
}

// A tag is well formed for both or for neither.
func FuzzTag(f *testing.F) {
	for _, s := range []string{"", "a", "A", "1", "_", ".", "-", "a.", "a-b", "a:b", "ä", "a\n", strings.Repeat("a", 128), strings.Repeat("a", 129)} {
		f.Add(s)
	}
	base, err := ParseReference("a")
	if err != nil {
		f.Fatal(err)
	}
	theirs, err := reference.ParseNormalizedNamed("a")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := base.WithTag(s)
		if _, want := reference.WithTag(theirs, s); (err == nil) != (want == nil) {
			t.Fatalf("tag %q: %v; docker's says %v", s, err, want)
		}
	})
}
