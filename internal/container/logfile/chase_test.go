package logfile

import (
	"errors"
	"testing"

	"ply/internal/container/shim"
)

// A read that does not follow ends although each record that it reads is answered by another one.
func TestReadEndsBehindAFastWriter(t *testing.T) {
	for _, driver := range []string{JSONFile, Local} {
		t.Run(driver, func(t *testing.T) {
			l := newLog(t, driver)
			w, err := Create(l)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			out := w.Stream(shim.Stdout)
			more := func() {
				if _, err := out.Write([]byte("line\n")); err != nil {
					t.Fatal(err)
				}
			}
			for range 10 {
				more()
			}
			n := 0
			err = Read(t.Context(), l, ReadOptions{Stdout: true, Stderr: true, Tail: -1}, one(func(Message) error {
				if n++; n > 1000 {
					return errors.New("it reads on")
				}
				more()
				return nil
			}))
			if err != nil || n != 10 {
				t.Errorf("read %d records, %v; there were 10", n, err)
			}
		})
	}
}
