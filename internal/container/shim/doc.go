// Package shim is the client side of the protocol between plyd and ply-shim, the process that owns one container. It
// starts a shim, finds it again after plyd was restarted, and sends requests to it. Package supervise is the server side.
//
// # Messages
//
// A shim serves a unix socket in its bundle directory. A connection starts with one request frame and gets one response
// frame. After an attach request the connection then carries chunks in both directions. A frame is a 4-byte big-endian
// length (at most MaxFrame) followed by JSON. A chunk is Docker's 8-byte header (stream, 0, 0, 0, length) followed by bytes.
//
// # Files
//
// plyd writes shim.json (Config) and config.json (the OCI runtime spec) to the bundle. The shim writes shim.pid and
// init.pid (Identity) to the bundle, and exit.json (ExitRecord) to Config.ExitPath, durably, when the container has ended;
// where that fails, it writes exit.json to the bundle. The shim outlives plyd: once the socket is gone, the exit file is
// what says how the container ended.
//
// # Versions
//
// plyd and the shims that it meets can be of different releases: containers keep running while plyd is upgraded or
// downgraded, and the binaries of an installation are replaced one after the other. The whole protocol, files and
// messages, has one version (Version). Every file and message states it; one that does not has version 1, because the
// first builds wrote none.
//
//   - A shim speaks the version that its shim.json states. It refuses to run a shim.json of a newer version than its own,
//     before it creates anything. So a new ply-shim works under an older plyd, and the shims that it leaves can be taken
//     over by any later plyd.
//   - plyd speaks to shims of every version up to its own, each in its version. It does not send what an older shim would
//     ignore; see Client.Update.
//   - When a shim speaks a newer version than plyd knows, plyd uses the core of the protocol and nothing else. The
//     container stays listed with its true state, it can be stopped and killed, its exit code is recorded, and its log can
//     be read. Everything else (attach, exec, pause, resize, update, stats, top) is refused with an error that names the
//     shim's version and release; see Client.Newer. plyd never ends a shim because of its version.
//
// The core never changes. It is: the frames; the fields op, process, args and version of Request and error, class and
// body of Response; the operations state, kill, wait and shutdown with their arguments and results; Identity, Exit, and
// the fields id, stateDir, runtime and exitPath of Config. testdata/core pins it.
//
// A field or an operation may be added without a new version, if a receiver that does not know it may ignore the field
// or refuse the operation. Receivers ignore fields that they do not know, and answer an operation that they do not know with
// ClassUnsupported. Every other change raises Version: a field that must be obeyed, a field that changes its meaning, a
// chunk of a new kind. No name is ever used again with another meaning. The golden files in testdata show the form of each
// file and message; testdata/unversioned holds what the first builds wrote.
package shim
