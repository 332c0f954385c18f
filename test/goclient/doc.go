// Package goclient tests plyd with docker's own client libraries for Go: github.com/docker/docker, which most programs use, and its successor
// github.com/moby/moby/client. Both do the same, and every connection that they dial is counted. It is a module of its own, so that ply does not
// depend on them; test/setup/clients builds the tests, and a story of test/e2e runs them against its plyd.
package goclient
