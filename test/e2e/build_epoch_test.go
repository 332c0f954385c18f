package e2e

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const epochDockerfile = `FROM busybox AS made
RUN mkdir -p /out/deep && date +%s%N > /dev/null && echo x > /out/deep/file && ln /out/deep/file /out/hard && ln -s deep /out/soft && touch -d @5 /out/old

FROM busybox
ARG SOURCE_DATE_EPOCH
WORKDIR /work/place
COPY a b/ ./
COPY --from=made /out /made
COPY --link a /linked/
ADD archive.tar /unpacked/
COPY <<here /heredoc
text
here
RUN rm /bin/vi && chmod 700 /root && mkfifo /pipe && echo $SOURCE_DATE_EPOCH > /epoch
RUN --mount=type=cache,target=/cache --mount=type=bind,source=b,target=/bound cp -r /bound /copied && date > /cache/now
LABEL l=1
CMD ["cat", "/epoch"]
`

// epochContext makes the context of a build whose files have a time of their own.
func epochContext(t *testing.T, when time.Time, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(epochDockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "archive.tar"))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "new/", Mode: 0o755, ModTime: time.Unix(1_800_000_000, 5)},
		{Typeflag: tar.TypeReg, Name: "new/old", Mode: 0o644, ModTime: time.Unix(7, 0)},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{w.Close(), f.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append(names, "Dockerfile", "archive.tar", "b", ".") {
		if err := os.Chtimes(filepath.Join(dir, name), when, when); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// With SOURCE_DATE_EPOCH a build gives the same bytes whenever and wherever it is executed; another epoch gives others.
func TestBuildEpoch(t *testing.T) {
	const epoch = "1700000000"
	early := epochContext(t, time.Unix(1_600_000_000, 0), "a", "b/x", "b/y")
	late := epochContext(t, time.Unix(1_750_000_000, 123), "b/y", "b/x", "a")
	ids := map[string]string{}
	build := func(w *world, dir string, flags ...string) string {
		t.Helper()
		return w.ply(append(append([]string{"build", "-q"}, flags...), dir)...)
	}
	at := []string{"--build-arg", "SOURCE_DATE_EPOCH=" + epoch, "-t", "repeated"}
	for _, driver := range []string{"erofs", "overlay2", "vfs"} {
		w := newWorld(t, "--storage-driver", driver)
		w.busybox()
		if driver == "erofs" {
			// Neither the results of a build without an epoch nor those of one with another are taken.
			plain := build(w, early)
			other := build(w, early, "--build-arg", "SOURCE_DATE_EPOCH=1700000001")
			if plain == other {
				t.Error("the epoch has no effect")
			}
			ids["other"] = other
		}
		ids[driver] = build(w, early, at...)
		if w.ply("run", "--rm", "repeated") != epoch {
			t.Error("the image does not know its epoch")
		}
		created := w.ply("inspect", "-f", "{{.Created}}", "repeated")
		for line := range strings.SplitSeq(w.ply("history", "--human=false", "--format", "{{.CreatedAt}}", "repeated"), "\n") {
			if when, err := time.Parse(time.RFC3339, strings.TrimSpace(line)); err != nil || when.Unix() > 1_700_000_000 {
				t.Errorf("%s: an entry of the history is of %q", driver, line)
			}
		}
		if when, err := time.Parse(time.RFC3339Nano, created); err != nil || when.Unix() != 1_700_000_000 {
			t.Errorf("%s: the image is of %s", driver, created)
		}
		young := w.ply("run", "--rm", "repeated", "sh", "-c", "touch -d @1700000001 /tmp/after; find /work /made /linked /unpacked /heredoc /root /epoch /copied /bin -newer /tmp/after -o -newer /tmp/after")
		if young != "" {
			t.Errorf("%s: younger than the epoch: %s", driver, young)
		}
		if got := w.ply("run", "--rm", "repeated", "stat", "-c", "%Y", "/made/old", "/unpacked/new/old", "/unpacked/new", "/work/place/a"); got != "5\n7\n"+epoch+"\n"+epoch {
			t.Errorf("%s: times %q", driver, got)
		}
		w.ply("builder", "prune", "-af")
		if again := build(w, late, append(at, "--no-cache")...); again != ids[driver] {
			t.Errorf("%s: the second build gives %s, the first %s", driver, again, ids[driver])
		}
	}
	// vfs finds out what a step did by comparing trees, so its layers lack what a step touched and left as it was.
	if ids["erofs"] != ids["overlay2"] || ids["erofs"] == ids["other"] {
		t.Errorf("images %v", ids)
	}
}
