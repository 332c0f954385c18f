package transfer

import "testing"

func TestWithoutUser(t *testing.T) {
	for address, want := range map[string]string{
		"-":                               "-",
		"http://host/x.tar":               "http://host/x.tar",
		"http://host/a@b?c=d@e#f@g":       "http://host/a@b?c=d@e#f@g",
		"host:80/x.tar":                   "host:80/x.tar",
		"http://user:pass@host:80/x?y=z":  "http://host:80/x?y=z",
		"https://token@host":              "https://host",
		"http://user:p@ss@host/x@y":       "http://host/x@y",
		"http://us%zz:%zzpass@host/x":     "http://host/x",
		"user:pass@host/x":                "host/x",
		"http://user:pass@host?q=http://": "http://host?q=http://",
		"http://[::1]:80/x":               "http://[::1]:80/x",
		"http://user:pass@[::1]:80/x":     "http://[::1]:80/x",
	} {
		if got := WithoutUser(address); got != want {
			t.Errorf("WithoutUser(%q) = %q, want %q", address, got, want)
		}
	}
}
