package nodeconf

import "testing"

func BenchmarkCommands(b *testing.B) {
	host := Trusted("")
	for b.Loop() {
		Commands(host)
	}
}
