// Package context has the commands of contexts: names of engines, in the store that docker's client uses, too.
package context
