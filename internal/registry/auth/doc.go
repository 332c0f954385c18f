// Package auth decides who may do what: it keeps users and their roles, checks passwords and tokens, and issues tokens.
//
// Invariants: a registry without a file of users is open to everyone; with one it is closed for as long as the file exists, whoever is
// in it. There is no default password. Rights are decided by Rights.May and nowhere else; a token narrows them and never widens them,
// and a right that its user has lost is lost to the token as well. A wrong password and an unknown user cost the same time.
package auth
