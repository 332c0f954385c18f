// Package content has the vocabulary of the registry: digests of several algorithms, the names of repositories and tags, and what
// a manifest refers to.
//
// Invariants: a Digest, Repository or Tag from a parser of this package is well formed, so that it can be a part of a key, a
// file name or a URL. The bytes of a manifest are never serialised again. A manifest of an unknown media type is content like
// any other; what it refers to is taken from the fields that all known types share.
package content
