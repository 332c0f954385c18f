// Package registry has the commands that speak to a registry about accounts and search: login, logout and search. Pull and push are in
// package image.
package registry
