package transfer

import "testing"

func TestWithoutSecrets(t *testing.T) {
	for address, want := range map[string]string{
		"-":                               "-",
		"http://host/x.tar":               "http://host/x.tar",
		"http://host/a@b?c=d@e#f@g":       "http://host/a@b",
		"https://host/x?sig=secret&e=1":   "https://host/x",
		"http://host/x#secret":            "http://host/x",
		"host:80/x.tar":                   "host:80/x.tar",
		"http://user:pass@host:80/x?y=z":  "http://host:80/x",
		"https://token@host":              "https://host",
		"http://user:p@ss@host/x@y":       "http://host/x@y",
		"http://us%zz:%zzpass@host/x":     "http://host/x",
		"user:pass@host/x":                "host/x",
		"http://user:pass@host?q=http://": "http://host",
		"http://[::1]:80/x":               "http://[::1]:80/x",
		"http://user:pass@[::1]:80/x":     "http://[::1]:80/x",
	} {
		if got := WithoutSecrets(address); got != want {
			t.Errorf("WithoutSecrets(%q) = %q, want %q", address, got, want)
		}
	}
}
