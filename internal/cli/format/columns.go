package format

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
)

// Columns writes rows in aligned columns, with docker's spacing.
func Columns(w io.Writer, minWidth int, rows [][]string) error {
	var buf bytes.Buffer
	for _, r := range rows {
		buf.WriteString(visible(strings.Join(r, "\t")) + "\n")
	}
	return aligned(w, minWidth, buf.Bytes())
}

// aligned writes text whose cells end with tabs in columns. Package tabwriter writes each cell and each gap on its own, so they are collected: a table of a
// thousand rows would else need ten thousand system calls.
func aligned(w io.Writer, minWidth int, text []byte) error {
	out := bufio.NewWriterSize(w, 64<<10)
	tw := tabwriter.NewWriter(out, minWidth, 1, 3, ' ', 0)
	if _, err := tw.Write(text); err != nil {
		return err
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// visible replaces the control characters of a text, except tabs and newlines: they may come from an image or from a process in a container, and would
// drive the terminal.
func visible(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) && c != '\t' && c != '\n' {
			return unicode.ReplacementChar
		}
		return c
	}, s)
}

// Natural compares strings so that the numbers in them count as numbers: v9 comes before v10.
func Natural(a, b string) int {
	switch {
	case naturalLess(a, b):
		return -1
	case naturalLess(b, a):
		return 1
	}
	return 0
}

func naturalLess(a, b string) bool {
	for a != "" && b != "" {
		an, bn := digits(a), digits(b)
		if an > 0 && bn > 0 {
			x, _ := strconv.ParseUint(a[:an], 10, 64)
			y, _ := strconv.ParseUint(b[:bn], 10, 64)
			if x != y {
				return x < y
			}
			a, b = a[an:], b[bn:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

// digits returns how many decimal digits s begins with, at most 18.
func digits(s string) int {
	n := 0
	for n < len(s) && n < 18 && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
