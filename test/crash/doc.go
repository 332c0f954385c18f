// Package crash tests that the engine opens again after any failure or crash, with everything that it had acknowledged.
//
//   - faults_test.go makes each operation of the disk fail in turn, inside one process. It covers what is written and read through
//     durable.FS.
//   - record_test.go records the system calls of each operation with strace, and opens the engine on states that a crash can leave
//     (package crashstate). It covers durable.FS, the database, the unpacking of trees, the filling of volumes, logs and the files of
//     the shim, and assumes less of a file system than any promises. It does not cover what a container writes.
//   - kill_test.go kills plyd at random moments while clients use it, with every storage driver.
//   - power_test.go cuts the power of a machine in which plyd runs, with its disk on ext4, xfs and btrfs. It covers everything that
//     is written, also by the shims, by containers and directly to the kernel.
//   - damage_test.go damages one object of each class, and has ply system check find and heal it; -crash.damage does it in each way.
//
// The random tests print their seed; -crash.seed sets it, and -crash.kills, -crash.cuts and -crash.states say how many crashes there are. A seed
// gives the same decisions, not the same timing.
package crash
