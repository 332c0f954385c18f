// Package lint holds the rules of the house as tests: which package may import which, what a binary may reach, that every
// package says what it gives, and that the drawings in docs/ are true. It has no code of its own.
package lint
