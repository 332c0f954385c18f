// Package tarstream packs local files into a tar stream, and unpacks a tar stream into a local directory: the local side of cp, and the
// context of a build. The rules for names are docker's. A stream comes from an engine and is not trusted.
package tarstream
