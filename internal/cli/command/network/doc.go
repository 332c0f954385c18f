// Package network has the commands on networks.
package network
