package logfile

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"ply/internal/container/shim"
)

// goldenMessages are the records of testdata/json-file.log and testdata/local.log, which the previous build wrote.
var goldenMessages = []Message{
	{Time: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), Stream: shim.Stdout, Line: []byte("a line\n")},
	{Time: time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC), Stream: shim.Stderr, Line: []byte("\"quoted\" \\ <b>&\t\u2028 é\r\n")},
	{Time: time.Date(2026, 3, 4, 5, 6, 8, 120000000, time.UTC), Stream: shim.Stdout, Line: []byte("\n")},
	{Time: time.Date(2026, 3, 4, 5, 6, 9, 1, time.UTC), Stream: shim.Stdout, Line: []byte("the unfinished end")},
}

// The formats never change: shims of several releases append to one file, and other programs read them.
func TestFormatsAreFrozen(t *testing.T) {
	for _, driver := range drivers {
		want, err := os.ReadFile(filepath.Join("testdata", driver+".log"))
		if err != nil {
			t.Fatal(err)
		}
		var wrote []byte
		for _, m := range goldenMessages {
			wrote = formatOf(driver, nil).encode(wrote, m)
		}
		if !bytes.Equal(wrote, want) {
			t.Errorf("%s: wrote\n%q, want\n%q", driver, wrote, want)
		}
		var got []Message
		l := shim.Log{Driver: driver, Path: filepath.Join("testdata", driver+".log"), MaxFiles: 1}
		err = Read(t.Context(), l, ReadOptions{Stdout: true, Stderr: true, Tail: -1}, one(func(m Message) error {
			got = append(got, m)
			return nil
		}))
		if err != nil || !reflect.DeepEqual(got, goldenMessages) {
			t.Errorf("%s: read\n%q, %v, want\n%q", driver, got, err, goldenMessages)
		}
	}
}
