// Package crash tests that the engine opens again after any failure or crash, with everything that it had acknowledged.
// faults_test.go makes each operation of the disk fail in turn, inside one process. kill_test.go kills plyd at random
// moments while clients use it.
package crash
