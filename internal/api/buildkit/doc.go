// Package buildkit speaks BuildKit's protocols: the sessions by which a client offers its directories, secrets, ssh agents and credentials to a build,
// the services control and gateway by which it builds, and the progress of a build as its clients read it.
//
// A session is a connection that was taken over from HTTP, on which the engine is the client of gRPC services. Control and gateway are gRPC services of
// the engine. buildx reaches them with its driver docker by POST /grpc, which turns a connection of docker's API into one of gRPC, and with its driver
// remote on the same unix socket, where they are what HTTP/2 serves: `buildx create --driver remote unix:///run/ply.sock`. Over TCP with TLS only
// the driver docker works. Only this package knows BuildKit's messages; builds know the client as build.Client.
//
// There is one front end, the built-in one. In a build that its client drives, every solve runs it, or takes a definition; what the client returns at the
// end must be one of these results, unchanged. Source policies and processes in containers of the gateway are refused.
//
// Invariants: everything that a client sends is bounded before it is kept: the length of a message, of a name, of a secret, the number of sessions. A
// path of a client is checked before it is used, no link is followed, and what is written stays below the directory that receives it. Secrets and
// credentials are never logged.
package buildkit
