package kernel

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

func TestBTFNames(t *testing.T) {
	b, err := btf.NewBuilder([]btf.Type{lockedValue()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	names, err := btfNames(blob)
	if err != nil || !strings.Contains(string(names), "\x00bpf_spin_lock\x00") {
		t.Errorf("the names are %q, %v", names, err)
	}
	for n := range blob {
		if names, err := btfNames(blob[:n]); err == nil {
			t.Errorf("%d of %d bytes have the names %q", n, len(blob), names)
		}
	}
}
