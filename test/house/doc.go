// Package house tests what surrounds the programs: installation, completion, manual pages, and the ways in which plyd is started.
package house
