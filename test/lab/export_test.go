package lab

// LeaksNow is Snapshot.Leaks without the wait.
func (s *Snapshot) LeaksNow() ([]string, error) { return s.leaksNow(true) }
