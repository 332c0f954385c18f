package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// libraryCalls are the calls of docker's libraries that do what a command does: methods of the Go clients, where both have the same name or one that
// the expression covers, and text of the Python program.
var libraryCalls = map[string]struct{ goMethod, python string }{
	"container attach":   {goMethod: `ContainerAttach`},
	"container commit":   {goMethod: `ContainerCommit`, python: `x.commit(`},
	"container cp":       {goMethod: `CopyToContainer`, python: `x.put_archive(`},
	"container create":   {goMethod: `ContainerCreate`, python: `c.containers.run(`},
	"container diff":     {goMethod: `ContainerDiff`, python: `x.diff(`},
	"container exec":     {goMethod: `(Container)?ExecAttach`, python: `x.exec_run(`},
	"container export":   {goMethod: `ContainerExport`},
	"container inspect":  {goMethod: `ContainerInspect`, python: `x.reload(`},
	"container kill":     {goMethod: `ContainerKill`, python: `x.kill(`},
	"container logs":     {goMethod: `ContainerLogs`, python: `x.logs(`},
	"container ls":       {goMethod: `ContainerList`, python: `c.containers.list(`},
	"container pause":    {goMethod: `ContainerPause`, python: `x.pause(`},
	"container prune":    {goMethod: `Containers?Prune`},
	"container rename":   {goMethod: `ContainerRename`, python: `x.rename(`},
	"container restart":  {goMethod: `ContainerRestart`, python: `x.restart(`},
	"container rm":       {goMethod: `ContainerRemove`, python: `x.remove(`},
	"container run":      {python: `c.containers.run(`},
	"container start":    {goMethod: `ContainerStart`, python: `x.start(`},
	"container stats":    {goMethod: `ContainerStats`, python: `x.stats(`},
	"container stop":     {goMethod: `ContainerStop`, python: `x.stop(`},
	"container top":      {goMethod: `ContainerTop`, python: `x.top(`},
	"container unpause":  {goMethod: `ContainerUnpause`, python: `x.unpause(`},
	"container update":   {goMethod: `ContainerUpdate`, python: `x.update(`},
	"container wait":     {goMethod: `ContainerWait`, python: `x.wait(`},
	"image build":        {goMethod: `ImageBuild`},
	"image history":      {goMethod: `ImageHistory`, python: `i.history(`},
	"image import":       {goMethod: `ImageImport`},
	"image inspect":      {goMethod: `ImageInspect`, python: `c.images.get(`},
	"image load":         {goMethod: `ImageLoad`, python: `c.images.load(`},
	"image ls":           {goMethod: `ImageList`},
	"image prune":        {goMethod: `Images?Prune`},
	"image pull":         {goMethod: `ImagePull`, python: `c.images.pull(`},
	"image push":         {goMethod: `ImagePush`, python: `c.images.push(`},
	"image rm":           {goMethod: `ImageRemove`, python: `c.images.remove(`},
	"image save":         {goMethod: `ImageSave`, python: `i.save(`},
	"image tag":          {goMethod: `ImageTag`, python: `i.tag(`},
	"network connect":    {goMethod: `NetworkConnect`},
	"network create":     {goMethod: `NetworkCreate`},
	"network disconnect": {goMethod: `NetworkDisconnect`},
	"network inspect":    {goMethod: `NetworkInspect`},
	"network ls":         {goMethod: `NetworkList`, python: `c.networks.list(`},
	"network prune":      {goMethod: `Networks?Prune`},
	"network rm":         {goMethod: `NetworkRemove`},
	"system df":          {goMethod: `DiskUsage`, python: `c.df(`},
	"system events":      {goMethod: `Events`},
	"system info":        {goMethod: `Info`, python: `c.info(`},
	"version":            {goMethod: `ServerVersion`, python: `c.version(`},
	"volume create":      {goMethod: `VolumeCreate`, python: `c.volumes.create(`},
	"volume inspect":     {goMethod: `VolumeInspect`},
	"volume ls":          {goMethod: `VolumeList`, python: `c.volumes.list(`},
	"volume prune":       {goMethod: `Volumes?Prune`},
	"volume rm":          {goMethod: `VolumeRemove`, python: `v.remove(`},
}

// The page about clients has a row for every command, which says who does it, and names the stories that there are. UPDATE_SCRIPTS=1 writes the rows.
func TestClientsPage(t *testing.T) {
	read := func(path ...string) string {
		b, err := os.ReadFile(filepath.Join(append([]string{"..", ".."}, path...)...))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	story := func(kind, name string) string { return read("test", "e2e", "testdata", kind, name+".txtar") }
	library := func(name string) string {
		return read("test", "goclient", name+"_test.go") + read("test", "goclient", name+"_commands_test.go")
	}
	page := read("docs", "clients.md")
	want := replaceTable(t, page, "command", commandRows(story("script", "docker_cli_management"), story("script", "docker_cli_verbs"), library("docker"), library("moby"), story("script", "python_client")+story("script", "python_connections")))
	want = replaceTable(t, want, "compose", composeRows(story("clients", "compose")+story("clients", "compose_watch"), story("clients", "compose_old")))
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(filepath.Join("..", "..", "docs", "clients.md"), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if page != want {
		t.Errorf("docs/clients.md is not what the stories show: write it with UPDATE_SCRIPTS=1\n%s", want)
	}
	stories, err := filepath.Glob(filepath.Join("testdata", "clients", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stories {
		if name := strings.TrimSuffix(filepath.Base(s), ".txtar"); !strings.Contains(want, "`"+name+"`") {
			t.Errorf("docs/clients.md does not name the story %s", name)
		}
	}
	for _, m := range regexp.MustCompile("`([a-z0-9]+_[a-z0-9_]+)`").FindAllStringSubmatch(want, -1) {
		if found, _ := filepath.Glob(filepath.Join("testdata", "*", m[1]+".txtar")); len(found) != 1 { // the pattern is good
			t.Errorf("docs/clients.md names %s, which is no story", m[1])
		}
	}
}

// replaceTable replaces the rows of the table whose first column is named so.
func replaceTable(t *testing.T, page, column string, rows []string) string {
	t.Helper()
	table := regexp.MustCompile(`(?m)^(\| ` + column + ` \|.*\n\|[-| ]+\|\n)((?:\|.*\n)*)`)
	if len(table.FindAllString(page, -1)) != 1 {
		t.Fatalf("docs/clients.md has no table with the column %s, or several", column)
	}
	return table.ReplaceAllString(page, "${1}"+strings.Join(rows, ""))
}

func mark(done bool) string {
	if done {
		return "✓"
	}
	return ""
}

func commandRows(management, verbs, docker, moby, python string) (rows []string) {
	commands := map[string]bool{}
	if strings.Contains(verbs, "\nv version ") { // the others have a form in management
		commands["version"] = true
	}
	for _, m := range regexp.MustCompile(`\bv ((?:container|image|network|system|volume) [a-z]+)`).FindAllStringSubmatch(management, -1) {
		commands[m[1]] = true
	}
	for _, c := range slices.Sorted(maps.Keys(commands)) {
		call := libraryCalls[c]
		method := regexp.MustCompile(`\.` + cmp.Or(call.goMethod, "none") + `(OneShot)?\(ctx`)
		rows = append(rows, fmt.Sprintf("| %s | ✓ | %s | %s | %s |\n", c, mark(method.MatchString(docker)), mark(method.MatchString(moby)),
			mark(call.python != "" && strings.Contains(python, call.python))))
	}
	return rows
}

func composeRows(v5, v1 string) (rows []string) {
	option := `(?: --profile [a-z]+)*`
	verbs := func(pattern, text string) map[string]bool {
		found := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern+option+` ([a-z]+)`).FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
		}
		return found
	}
	a, b := verbs(`(?:docker20 compose|/usr/bin/docker compose|\$CLIENTS/docker-compose)`, v5), verbs(`/usr/bin/docker-compose`, v1)
	all := maps.Clone(a)
	maps.Copy(all, b)
	for _, c := range slices.Sorted(maps.Keys(all)) {
		rows = append(rows, fmt.Sprintf("| %s | %s | %s |\n", c, mark(a[c]), mark(b[c])))
	}
	return rows
}
