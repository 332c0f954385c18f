package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// rootWithUsers returns a directory with an /etc/passwd and an /etc/group, some of whose lines are malformed.
func rootWithUsers(t *testing.T) string {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\nodd:x:1001:1001::relative:/bin/sh\n" +
			"broken\n7:x:77:77::/seven:/bin/sh\nhuge:x:4294967296:0::/:/bin/sh\nnogid:x:12:x::/:/bin/sh\nshort:x:50:51\n",
		"group": "root:x:0:\nweb:x:33:\nteam:x:500:web,other\nstaff:x:501:other\n9:x:99:web\nbad:x:-1:web\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLookupUser(t *testing.T) {
	root, err := os.Open(rootWithUsers(t))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, c := range []struct {
		user     string
		add      []string
		uid, gid uint32
		groups   []uint32
		home     string
	}{
		{"", nil, 0, 0, []uint32{0}, "/root"},
		{"root", nil, 0, 0, []uint32{0}, "/root"},
		{"0", nil, 0, 0, []uint32{0}, "/root"},
		{"web", nil, 33, 33, []uint32{33, 500, 99}, "/var/www"},
		{"33", nil, 33, 33, []uint32{33, 500, 99}, "/var/www"},
		{"web:", nil, 33, 33, []uint32{33, 500, 99}, "/var/www"},
		{"web:staff", nil, 33, 501, []uint32{501}, "/var/www"},
		{"web:501", nil, 33, 501, []uint32{501}, "/var/www"},
		{"web:12345", nil, 33, 12345, []uint32{12345}, "/var/www"},
		{":staff", nil, 0, 501, []uint32{501}, "/root"},
		{"12345", nil, 12345, 0, []uint32{0}, "/"},
		{"12345:6", nil, 12345, 6, []uint32{6}, "/"},
		{"2147483647:2147483647", nil, 1<<31 - 1, 1<<31 - 1, []uint32{1<<31 - 1}, "/"},
		{"odd", nil, 1001, 1001, []uint32{1001}, "/"},
		{"short", nil, 50, 51, []uint32{51}, "/"},
		{"7", nil, 7, 0, []uint32{0}, "/"},             // an ID, although a user has this name
		{"web:9", nil, 33, 9, []uint32{9}, "/var/www"}, // the same for groups
		{"web", []string{"staff", "7"}, 33, 33, []uint32{33, 500, 99, 7, 501}, "/var/www"},
		{"007", nil, 7, 0, []uint32{0}, "/"},
	} {
		got, err := LookupUser(root, c.user, c.add)
		if err != nil {
			t.Errorf("%q: %v", c.user, err)
			continue
		}
		if got.UID != c.uid || got.GID != c.gid || !slices.Equal(got.Groups, c.groups) || got.Home != c.home {
			t.Errorf("LookupUser(%q, %q) = %+v, want %+v", c.user, c.add, got, c)
		}
	}
	for user, words := range map[string]string{
		"nobody":                  "unable to find user nobody: no matching entries in passwd file",
		"web:nogroup":             "unable to find group nogroup: no matching entries in group file",
		"huge":                    "unable to find user huge",
		"nogid":                   "unable to find user nogid",
		"2147483648":              "must be in range",
		"4294967295":              "must be in range",
		"4294967296":              "must be in range",
		"18446744073709551616":    "must be in range",
		"99999999999999999999999": "must be in range",
		"-1":                      "must be in range",
		"web:2147483648":          "must be in range",
		"web:-1":                  "must be in range",
		"a:b:c":                   "not of the form",
		"Root":                    "unable to find user Root",
		"0x0":                     "unable to find user 0x0",
		"+0":                      "unable to find user +0",
		" 0":                      "unable to find user  0",
		"0 ":                      "unable to find user 0 ",
		"٣":                       "unable to find user ٣",
		"0.0":                     "unable to find user 0.0",
		"web:web:":                "not of the form",
	} {
		got, err := LookupUser(root, user, nil)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("LookupUser(%q) = %+v, %v, want %q", user, got, err, words)
		}
	}
	if _, err := LookupUser(root, strings.Repeat("u", 1000), nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("a long name: %v", err)
	}
	if _, err := LookupUser(root, "web", []string{"nogroup"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("an unknown extra group: %v", err)
	}
}

// A lookup in an image ends soon and reads no file outside the image, whatever /etc/passwd is.
func TestHostileUserFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(secret, []byte("host:x:4242:4242::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(file string) error{
		"fifo":      func(f string) error { return unix.Mkfifo(f, 0o666) },
		"link":      func(f string) error { return os.Symlink(secret, f) },
		"device":    func(f string) error { return unix.Mknod(f, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"directory": func(f string) error { return os.Mkdir(f, 0o755) },
		"huge": func(f string) error {
			h, err := os.Create(f)
			if err != nil {
				return err
			}
			return errors.Join(h.Truncate(1<<30), h.Close())
		},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := plant(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := LookupUser(root, "host", nil)
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %v, want errs.Invalid", name, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: the lookup hangs", name)
		}
		_ = root.Close()
	}
	// A link on the way to the file does not lead out of the image.
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(secret), filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got, err := LookupUser(root, "host", nil); err == nil {
		t.Errorf("through a link: %+v", got)
	}
	// IDs need no files.
	if got, err := LookupUser(root, "5:6", nil); err != nil || got.UID != 5 || got.GID != 6 {
		t.Errorf("without files: %+v, %v", got, err)
	}
}

// A file of users that the kernel cannot read is lost data, and the error says what helps.
func TestUserFileIsDamaged(t *testing.T) {
	root, err := os.Open("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = userLines(root, "mem", 1, func([]string) {}) // nothing is mapped at its start
	if !errors.Is(err, errs.DataLoss) || !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "Pull or load") {
		t.Errorf("%v", err)
	}
}
