// Package buildkit speaks BuildKit's protocols: the sessions by which a client offers its directories, secrets, ssh agents and credentials to a build,
// and the progress of a build as its clients read it.
//
// A session is a connection that was taken over from HTTP, on which the engine is the client of gRPC services. Only this package knows BuildKit's
// messages; builds know the client as build.Client.
//
// Invariants: everything that a client sends is bounded before it is kept: the length of a message, of a name, of a secret, the number of sessions. A
// path of a client is checked before it is used, no link is followed, and what is written stays below the directory that receives it. Secrets and
// credentials are never logged.
package buildkit
