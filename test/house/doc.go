// Package house tests what stands around the programs: installation, completion, manuals, and how plyd comes to life.
package house
