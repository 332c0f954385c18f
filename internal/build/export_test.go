package build

// Settle waits for what is done behind builds.
func (s *Service) Settle() { s.work.Wait() }
