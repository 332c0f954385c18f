package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Links of the documents lead to files of the tree.
func TestLinksResolve(t *testing.T) {
	docs, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil || len(docs) < 5 {
		t.Fatalf("found %d documents (%v)", len(docs), err)
	}
	for _, doc := range append(docs, filepath.Join("..", "..", "README.md")) {
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`).FindAllStringSubmatch(read(t, doc), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", filepath.Base(doc), m[1], err)
			}
		}
	}
}

// What the architecture puts in backquotes as code or as a path of the tree is there.
func TestArchitectureNamesExist(t *testing.T) {
	text := read(t, filepath.Join("..", "..", "docs", "ARCHITECTURE.md"))
	text = regexp.MustCompile("(?s)```.*?```").ReplaceAllString(text, "")
	known := identifiers(t)
	checked := 0
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		word := m[1]
		switch {
		case regexp.MustCompile(`^[a-z0-9]+(/[a-zA-Z0-9_.]+)+$`).MatchString(word): // a path, from the root or from internal
			_, err := os.Stat(filepath.Join("..", word))
			if _, rerr := os.Stat(filepath.Join("..", "..", word)); err != nil && rerr != nil {
				t.Errorf("there is no %s", word)
			}
			checked++
		case regexp.MustCompile(`^\w+(\.\w+)+$`).MatchString(word) && !regexp.MustCompile(`\.(md|go|db|json)$`).MatchString(word):
			for part := range strings.SplitSeq(word, ".") {
				if !known[part] {
					t.Errorf("%s: nothing in the tree is named %s", word, part)
				}
			}
			checked++
		case regexp.MustCompile(`^([A-Z]\w+|[a-z]+[A-Z]\w+)$`).MatchString(word):
			if !known[word] {
				t.Errorf("nothing in the tree is named %s", word)
			}
			checked++
		}
	}
	if checked < 40 {
		t.Errorf("only %d names were looked up", checked)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// source parses every Go file of the tree; tests are left out unless they are asked for.
func source(t *testing.T, tests bool, visit func(path string, f *ast.File)) {
	t.Helper()
	for _, top := range []string{"cmd", "internal", "test", "bench"} {
		err := filepath.WalkDir(filepath.Join("..", "..", top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || (strings.HasSuffix(path, "_test.go") && !tests) {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution|parser.ParseComments)
			if err == nil {
				visit(path, f)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// identifiers are the names of packages, types, functions, methods and fields.
func identifiers(t *testing.T) map[string]bool {
	known := map[string]bool{}
	source(t, false, func(_ string, f *ast.File) {
		known[f.Name.Name] = true
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				known[n.Name.Name] = true
			case *ast.TypeSpec:
				known[n.Name.Name] = true
			case *ast.Field:
				for _, name := range n.Names {
					known[name.Name] = true
				}
			case *ast.ValueSpec:
				for _, name := range n.Names {
					known[name.Name] = true
				}
			}
			return true
		})
	})
	return known
}

// providers says which Debian package brings a program that tests run; what every Debian has is under "".
var providers = map[string][]string{
	"": {"sh", "bash", "cat", "chmod", "chown", "chroot", "cp", "dd", "df", "diff", "du", "echo", "env", "find", "grep", "gzip", "id", "ln", "ls", "mkdir", "mkfifo",
		"mknod", "mv", "printf", "rm", "sed", "sha256sum", "sleep", "stat", "sync", "tail", "tar", "timeout", "touch", "true", "truncate", "make", "go", "dpkg", "dpkg-query"},
	"git":             {"git"},
	"patch":           {"patch"},
	"util-linux":      {"unshare", "nsenter", "mount", "umount", "losetup", "findmnt", "script"},
	"e2fsprogs":       {"mkfs.ext4", "chattr"},
	"xfsprogs":        {"mkfs.xfs"},
	"btrfs-progs":     {"mkfs.btrfs"},
	"dbus":            {"dbus-daemon"},
	"ufw":             {"ufw"},
	"firewalld":       {"firewalld", "firewall-cmd"},
	"iproute2":        {"ip", "ss"},
	"nftables":        {"nft"},
	"procps":          {"pgrep", "pkill", "ps"},
	"docker.io":       {"docker", "dockerd", "runc", "containerd", "ctr"}, // the last two by the package that it depends on
	"docker-registry": {"docker-registry"},
	"python3-docker":  {"python3"},
	"groff-base":      {"groff"},
	"erofs-utils":     {"fsck.erofs", "dump.erofs", "mkfs.erofs"},
	"apache2-utils":   {"htpasswd"},
	"skopeo":          {"skopeo"},
	"strace":          {"strace"},
	"zstd":            {"zstd"},
	"xz-utils":        {"xz"},
	"curl":            {"curl"},
	"openssh-server":  {"ssh", "ssh-keygen"}, // by the package that it depends on
}

// optional programs sharpen a test where they happen to be, or make nightly installs them.
var optional = []string{"criu", "zsh", "fish", "systemd-analyze", "chromium", "journalctl", "qemu-system-x86_64", "qemu-img"}

// A machine that make test set up has every program that a test runs.
func TestProgramsOfTestsAreInstalled(t *testing.T) {
	makefile := read(t, filepath.Join("..", "..", "Makefile"))
	var installed []string
	for _, m := range regexp.MustCompile(`(?m)^(?:BUILD|RUN|TEST)_NEEDS +:= (.*)$`).FindAllStringSubmatch(makefile, -1) {
		installed = append(installed, strings.Fields(m[1])...)
	}
	has := map[string]bool{}
	for pkg, programs := range providers {
		if pkg != "" && !slices.Contains(installed, pkg) {
			t.Errorf("the Makefile does not install %s, which tests need for %v", pkg, programs)
		}
		for _, p := range programs {
			has[p] = true
		}
	}
	argument := map[string]int{"Command": 0, "CommandContext": 1, "LookPath": 0, "needs": 1, "must": 1}
	found := 0
	source(t, true, func(path string, f *ast.File) {
		if !strings.HasSuffix(path, "_test.go") && !strings.Contains(path, "test/") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name := ""
			switch fun := call.Fun.(type) {
			case *ast.Ident:
				name = fun.Name
			case *ast.SelectorExpr:
				if x, ok := fun.X.(*ast.Ident); ok && x.Name == "exec" {
					name = fun.Sel.Name
				}
			}
			i, ok := argument[name]
			if !ok || i >= len(call.Args) {
				return true
			}
			lit, ok := call.Args[i].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			found++
			if p := filepath.Base(strings.Trim(lit.Value, "\"`")); !has[p] && !slices.Contains(optional, p) {
				t.Errorf("%s runs %q: say in providers which package brings it", path, p)
			}
			return true
		})
	})
	if found < 30 {
		t.Errorf("found only %d programs", found)
	}
}
