// Package stream is how the Engine API streams: docker's 8-byte frames for two outputs on one connection, JSON
// lines for the progress of long work, and taking a connection over from HTTP.
//
// Invariants: a frame is written whole; putting a message never waits for the client, and what piles up meanwhile
// is bounded by the number of things that make progress, not by how often they report it.
package stream
