// Package table makes the rows of the tables that more than one command prints: containers (ps and system df), images (images and
// system df) and volumes (volume ls and system df).
package table
