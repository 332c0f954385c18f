// Package checkpoint has the commands on checkpoints.
package checkpoint
