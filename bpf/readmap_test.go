package bpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/test/lab"
)

func TestReadMap(t *testing.T) {
	lab.NeedsLinux(t, 5, 6, "batch operations")
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: readChunk + 50})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i := range m.MaxEntries() { // full: reading it takes as many steps as it has entries
		if err := m.Put(i, i+1); err != nil {
			t.Fatal(err)
		}
	}
	for _, batch := range []bool{true, false} {
		seen := map[uint32]bool{}
		err := ReadMap(m, ReadConfig{Batch: batch}, func(k, v *uint32) bool {
			seen[*k] = *v == *k+1
			return true
		})
		if err != nil || len(seen) != int(m.MaxEntries()) {
			t.Errorf("batch %v: %d entries, %v", batch, len(seen), err)
		}
		calls := 0
		if err := ReadMap(m, ReadConfig{Batch: batch}, func(_, _ *uint32) bool { calls++; return calls < 3 }); err != nil || calls != 3 {
			t.Errorf("batch %v: %d calls until it is to end, %v", batch, calls, err)
		}
	}
}
