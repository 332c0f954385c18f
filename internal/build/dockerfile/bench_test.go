package dockerfile_test

import (
	"fmt"
	"strings"
	"testing"
)

func BenchmarkBuild(b *testing.B) {
	for _, steps := range []int{1, 30, 300, 3000} {
		text := "FROM alpine AS build\nARG V=1\n" + strings.Repeat("RUN make $V\n", steps/2) + "FROM alpine\n" + strings.Repeat("COPY a /a\nENV A=$A:b\n", steps/4)
		b.Run(fmt.Sprint(steps), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := build(text, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
