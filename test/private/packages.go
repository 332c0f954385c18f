package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// unneeded are files of packages that only people read.
var unneeded = regexp.MustCompile(`^/usr/share/(doc|doc-base|info|lintian|locale|man|bug|i18n)/`)

// PackageRoot makes a root file system of installed Debian packages and those that they depend on, without their documentation.
func PackageRoot(dir string, names ...string) error {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Package};${Provides};${Pre-Depends}, ${Depends}\n").Output()
	if err != nil {
		return fmt.Errorf("dpkg-query: %w", err)
	}
	provide, need := map[string][]string{}, map[string]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.SplitN(strings.TrimSpace(line), ";", 3)
		need[f[0]] = f[2]
		for _, p := range append(alternatives(f[1]), f[0]) {
			provide[p] = append(provide[p], f[0])
		}
	}
	var packages []string
	for len(names) > 0 {
		p := names[0]
		names = names[1:]
		for _, q := range provide[p] {
			if !slices.Contains(packages, q) {
				packages = append(packages, q)
				names = append(names, alternatives(need[q])...)
			}
		}
	}
	if out, err = exec.Command("dpkg", append([]string{"-L"}, packages...)...).Output(); err != nil {
		return fmt.Errorf("dpkg -L: %w", err)
	}
	list := []string{"bin", "sbin", "lib", "lib64", "var/lib/dpkg/status", "etc/passwd", "etc/group"}
	for line := range strings.Lines(string(out)) {
		p := strings.TrimSpace(line)
		if unneeded.MatchString(p) || p == "/." {
			continue
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(p))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		p = filepath.Join(parent, filepath.Base(p))
		if _, err := os.Lstat(p); err == nil {
			list = append(list, p[1:])
		}
	}
	slices.Sort(list)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c", `set -e; cd /; tar --no-recursion -cf - -T - | tar -C "$1" -xf -; mkdir -p "$1"/tmp "$1"/run "$1"/usr/local/bin "$1"/usr/local/sbin; chmod 1777 "$1"/tmp`, "sh", dir)
	cmd.Stdin = strings.NewReader(strings.Join(slices.Compact(list), "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy packages: %w: %s", err, out)
	}
	return nil
}

// alternatives returns the names of packages in a relation such as Depends, without versions.
func alternatives(relation string) (names []string) {
	for _, p := range strings.FieldsFunc(relation, func(r rune) bool { return r == ',' || r == '|' }) {
		if f := strings.Fields(p); len(f) > 0 {
			name, _, _ := strings.Cut(f[0], ":")
			names = append(names, name)
		}
	}
	return names
}
