// Package system has the commands on the engine as a whole, and inspect, which takes objects of any kind.
package system
