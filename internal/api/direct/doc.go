// Package direct serves POST /build/direct, the build of ply's own command line: the client stays connected, and the engine asks it for
// directories, secrets, agents, credentials and outputs when a step needs them.
//
// On a unix socket a directory of the client is an open file that came with the answer, and the build reads it in place: nothing is
// uploaded or copied. Where that is not possible, over TCP and on file systems that refuse the engine, the client sends a tar.
//
// Invariants: a build that waits for its client ends when the connection ends; what a client sends is bounded and checked, and a file
// that it sends is used only if it is what was asked for; progress never holds up another client's work.
package direct
