// Package wire declares the JSON types of the Docker Engine API, once for the command line, which sends requests and reads
// answers, and for the server, which does the opposite. It has no logic beyond decoding: what a field means, and what is refused, is
// said by api/docker.
//
// The command line reads answers of other engines too, so a type of an answer may declare fewer fields than the server sends.
package wire
