// Package container has the commands on containers that exist. Those that start programs in containers, and connect to them, are in
// package run.
package container
