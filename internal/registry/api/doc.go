// Package api serves the OCI distribution protocol over HTTP: what clients of a registry speak.
//
// Invariants: the right to do something is decided in one place, Handler.ServeHTTP, before the function of a route runs; only a
// mount and a list ask again, about the other repositories that they touch. A path has one meaning. No more of a request than a
// fixed number of bytes is kept in memory. What a client is told to be stored is durable.
package api
