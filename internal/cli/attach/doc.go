// Package attach connects the local streams to a container or to an exec: Session copies both ways, FollowSize forwards the
// size of the terminal, ProxySignals forwards signals, and Wait waits for the end.
package attach
