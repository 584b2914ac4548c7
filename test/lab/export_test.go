package lab

// LeaksNow is Snapshot.Leaks without the wait.
func (s *Snapshot) LeaksNow() ([]string, error) {
	asked, err := bpfObjects()
	if err != nil {
		return nil, err
	}
	return s.leaksNow(asked, true)
}
