package spec

import (
	"slices"
)

// Ulimit is one rlimit.
type Ulimit struct {
	Name string `json:"Name"`
	Soft int64  `json:"Soft"`
	Hard int64  `json:"Hard"`
}

var ulimitNames = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack", "as",
}

// Check refuses an unknown name and a soft limit above the hard one; a negative number is no limit.
func (u Ulimit) Check() error {
	if !slices.Contains(ulimitNames, u.Name) {
		return invalid("invalid ulimit type: %s", clip(u.Name))
	}
	if u.Hard >= 0 && (u.Soft > u.Hard || u.Soft < 0) {
		return invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
	}
	return nil
}

func checkUlimits(s *Spec) error {
	for _, u := range s.Ulimits {
		if err := u.Check(); err != nil {
			return err
		}
	}
	return nil
}
