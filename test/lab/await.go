package lab

import (
	"testing"
	"time"
)

// patience is how long a test waits for what should take milliseconds: the machine may be busy.
const patience = time.Minute

// Await waits until something holds, and ends the test if it never does.
func Await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}
