// Package crash holds the engine to its promise: whatever fails or dies, the store opens again and holds everything that was
// acknowledged. faults_test.go makes each store operation fail in turn inside one process; kill_test.go kills plyd
// at random while clients work.
package crash
