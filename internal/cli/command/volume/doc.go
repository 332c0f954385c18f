// Package volume has the commands on volumes.
package volume
