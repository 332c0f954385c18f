package spec

// RestartPolicy says when a container is started again: Name is "", "no", "always", "unless-stopped" or "on-failure". MaxRetries bounds
// on-failure; 0 means no bound.
type RestartPolicy struct {
	Name       string `json:"Name"`
	MaxRetries int    `json:"MaxRetries"`
}

func checkPolicy(s *Spec) error {
	if err := s.RestartPolicy.Check(); err != nil {
		return err
	}
	if s.AutoRemove && s.RestartPolicy.Restarts() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

// Check refuses a policy that docker does not have.
func (p RestartPolicy) Check() error {
	switch p.Name {
	case "", "no", "always", "unless-stopped":
		if p.MaxRetries != 0 {
			return invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure":
		if p.MaxRetries < 0 {
			return invalid("invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return invalid("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", clip(p.Name))
	}
	return nil
}

// Restarts reports whether the policy ever starts a container again.
func (p RestartPolicy) Restarts() bool { return p.Name != "" && p.Name != "no" }
