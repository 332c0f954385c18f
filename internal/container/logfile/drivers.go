package logfile

import "slices"

// Names of the log drivers that send the output away; package logremote checks their options.
const (
	Syslog   = "syslog"
	Journald = "journald"
	Fluentd  = "fluentd"
	GELF     = "gelf"
)

// IsRemote reports whether a driver sends the output away.
func IsRemote(driver string) bool {
	return slices.Contains([]string{Syslog, Journald, Fluentd, GELF}, driver)
}

// Drivers returns the names of all log drivers, sorted.
func Drivers() []string { return []string{Fluentd, GELF, Journald, JSONFile, Local, None, Syslog} }
