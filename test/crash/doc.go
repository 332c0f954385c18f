// Package crash tests that the engine opens again after any failure or crash, with everything that it had acknowledged.
//
//   - faults_test.go makes each operation of the disk fail in turn, inside one process. It covers what is written through
//     durable.FS.
//   - kill_test.go kills plyd at random moments while clients use it, with every storage driver.
//   - power_test.go cuts the power of a machine in which plyd runs, with its disk on ext4, xfs and btrfs. It covers everything that
//     is written, also by the shims, by containers and directly to the kernel.
//
// The random tests print their seed; -crash.seed sets it, and -crash.kills and -crash.cuts say how many crashes there are. A seed
// gives the same decisions, not the same timing.
package crash
