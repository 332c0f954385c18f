// Package wire declares the JSON types of the Docker Engine API, once for the command line, which sends requests and reads
// answers, and for the server, which does the opposite. It has no logic beyond decoding: what a field means, and what is refused, is
// said by api/docker.
//
// The command line reads answers of other engines too: decoding tolerates fields that are missing or unknown.
package wire
