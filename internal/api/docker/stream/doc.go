// Package stream implements the streams of the Engine API: Docker's frames, which carry two outputs over one connection, JSON
// lines for the progress of long work, and the takeover of a connection from HTTP.
//
// Invariants: a frame is written in one piece. Putting a message does not wait for the client. The number of messages that
// wait for a slow client depends on the number of things that make progress, not on how often they report it.
package stream
