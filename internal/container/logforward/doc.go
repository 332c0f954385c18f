// Package logforward sends the output of a container to a receiver: syslog, journald, fluentd or GELF. It is the program ply-log,
// which a shim starts for a container with such a log driver, so that neither the shim nor a container with another driver pays for
// the libraries of these protocols.
//
// Invariants: the program needs its shim and the receiver, never plyd. It ends when the shim has closed its input, after the time
// that logfile.EndTime gives for the rest. It never holds more than its buffer and one record.
package logforward
