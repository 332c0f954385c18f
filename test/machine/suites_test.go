package machine

import (
	"fmt"
	"testing"
)

// The tests of the packages that meet the kernel pass on that of Debian 12 too.
func TestSuites(t *testing.T) {
	m := boot(t)
	m.sh("systemctl stop ply ply.socket")
	for _, pkg := range []string{
		"internal/mount", "internal/host", "internal/store/layer/overlay2", "internal/store/layer/vfs", "internal/store/layer/quota",
		"internal/container/runspec", "internal/container/supervise", "internal/container", "internal/network/bridge", "internal/volume",
	} {
		t.Run(pkg, func(t *testing.T) { m.in(t).suite(pkg) })
	}
}

// stories are those that the machine can run without programs that only the set-up of make test has. They are told by what they begin with.
const stories = "checkpoint|run|exec|cp|commit|build|volume|network|port|update|stats|pause|logs|restart|create|image|save|load|system"

// The stories of the command lines pass there too, against a plyd that the story starts.
func TestStories(t *testing.T) {
	m := boot(t)
	m.sh("systemctl stop ply ply.socket")
	m.suite("test/e2e", "-test.parallel=2", "-test.run", fmt.Sprintf("'^TestScripts$/^(%s)'", stories))
}
