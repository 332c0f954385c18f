package dockerfile_test

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ply/internal/build/dockerfile"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Random instructions: the step after each of them has the config of the Dockerfile that ends there.
func TestStepsOfRandomDockerfiles(t *testing.T) {
	words := rapid.SampledFrom([]string{
		"a", "$A", "${B}", "${A:-x}", "${C:+y}", `"two words"`, "'$A'", `\$A`, "${B%.*}", "${A##*/}", "${B//./-}", "1.2.3", "/p/q", "é", "$TARGETARCH", "$NONE",
		`a\ b`, `"$A $B"`, "x=y", "$$", "${A/x/$B}",
	})
	names := rapid.SampledFrom([]string{"A", "B", "C", "PATH", "TARGETARCH"})
	instruction := rapid.Custom(func(t *rapid.T) string {
		n, w, v := names.Draw(t, "name"), words.Draw(t, "word"), words.Draw(t, "value")
		return rapid.SampledFrom([]string{
			"ENV " + n + "=" + w, "ENV " + n + " " + w + " " + v, "ENV " + n + "=" + w + " B=" + v, "ARG " + n, "ARG " + n + "=" + w, "ARG " + n + "=" + w + " C=$" + n,
			"LABEL " + n + "=" + w, "LABEL " + w + "=" + v, "WORKDIR " + w, "WORKDIR /" + w + "/" + v, "USER " + w, "VOLUME " + w, "VOLUME [\"/v\", \"/w\"]",
			"EXPOSE 80 $A", "EXPOSE 53/udp", "EXPOSE 1000-1003", "STOPSIGNAL SIGINT", "STOPSIGNAL ${N:-9}", "CMD " + w, `CMD ["x", "y"]`, "CMD []", "ENTRYPOINT " + w, `ENTRYPOINT ["e"]`,
			`SHELL ["/bin/bash", "-c"]`, "HEALTHCHECK NONE", "HEALTHCHECK --retries=2 CMD " + w, "MAINTAINER " + w, "RUN " + w, "COPY a " + w, "ONBUILD ENV " + n + "=" + w,
			"ONBUILD RUN " + w, "ONBUILD ARG " + n, "RUN <<E\n" + w + "\nE", "# comment " + w, "ONBUILD CMD " + w,
		}).Draw(t, "instruction")
	})
	rapid.Check(t, func(t *rapid.T) {
		var lines []string
		for range rapid.IntRange(0, 2).Draw(t, "globals") {
			lines = append(lines, "ARG "+names.Draw(t, "global")+"="+words.Draw(t, "text"))
		}
		stages := rapid.IntRange(1, 3).Draw(t, "stages")
		for i := range stages {
			base := []string{"scratch", "alpine", "full", "onbuild", "s0", "s1"}[:4+i]
			lines = append(lines, "FROM "+rapid.SampledFrom(base).Draw(t, "base")+" AS s"+string(rune('0'+i)))
			lines = append(lines, rapid.SliceOfN(instruction, 0, 5).Draw(t, "instructions")...)
		}
		options := map[string]string{"build-arg:" + names.Draw(t, "arg"): words.Draw(t, "given")}
		text := strings.Join(lines, "\n") + "\n"
		out, _, err := build(text+"USER last\n", options) // Build takes the config of the last step from the front end
		if errors.Is(err, errs.Internal) {
			t.Fatalf("%v\n%s", err, text)
		}
		if err != nil {
			return
		}
		steps, configs := out.Images[0].Steps, slices.Collect(out.Images[0].Configs())
		for i, st := range steps {
			if wrong := misplaced(st); wrong != "" {
				t.Fatalf("%s\n%s", wrong, text)
			}
			if i+1 < len(steps) && steps[i+1].Trigger || slices.ContainsFunc(steps[i:], func(s dockerfile.Step) bool { return s.Start < st.Start }) {
				continue
			}
			// The lines of a stage that others stand between do not end a Dockerfile.
			short := strings.Join(strings.SplitAfter(text, "\n")[:min(st.End, strings.Count(text, "\n"))], "")
			if i == len(steps)-1 {
				break
			}
			out, _, err := build(short, maps.Clone(options))
			if err != nil {
				t.Fatalf("up to line %d: %v\n%s", st.End, err, text)
			}
			var c oci.Config
			if err := json.Unmarshal(out.Images[0].Config, &c); err != nil {
				t.Fatal(err)
			}
			want, _ := json.MarshalIndent(c.Config, "", " ")
			got, _ := json.MarshalIndent(configs[i], "", " ")
			if d := cmp.Diff(string(want), string(got)); d != "" || c.Author != st.Author || len(c.History) != st.History {
				t.Fatalf("after line %d, author %q and %q, history %d and %d:\n%s\n%s", st.End, c.Author, st.Author, len(c.History), st.History, d, text)
			}
		}
	})
}
