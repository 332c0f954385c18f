// Package machine shows ply on whole machines as its users have them: Debian 12 with its kernel, 6.1, with systemd, cgroup v2 and journald. The
// other tests run on the machine of who works on ply, beside which these need nothing.
//
// A machine is a disk that mmdebstrap fills, booted by qemu, with KVM where that works. What happens to it happens to nothing else: it is
// rebooted, its power is cut, its modules are loaded, its firewall is replaced.
//
// The tests run with PLY_NIGHTLY=1 only, as root. To add one, write
//
//	func TestSomething(t *testing.T) {
//		m := boot(t)
//		m.sh(`ply run --rm busybox true`)
//	}
//
// boot returns a machine with a disk of its own on which ply is installed and runs, with an image busybox. machine.sh runs a script
// of bash there, which ends at the first command that fails, and returns what it prints. The tree of this repository and the binaries are mounted at the
// paths that they have here (read-only), so machine.suite can run the tests of another package there. A Debian package that a test needs is one more word of
// packages in disk_test.go. While writing a test, -machine.disk DIR keeps the disk and takes it again, which saves two minutes:
//
//	PLY_NIGHTLY=1 PLY_BIN=$PWD/bin go test -v ./test/machine -run TestSomething -machine.disk /var/tmp/disk
package machine
