package mounts

import (
	"encoding/binary"
	"testing"
)

func TestDecodeHandle(t *testing.T) {
	old := make([]byte, 8)
	binary.NativeEndian.PutUint32(old, 57)
	binary.NativeEndian.PutUint32(old[4:], 3)
	now := make([]byte, 8)
	binary.NativeEndian.PutUint64(now, 1<<40|9)
	for _, row := range []struct {
		is   string
		kind int32
		b    []byte
		want uint64
	}{
		{"before 5.5: inode number and generation", fileIDIno32Gen, old, 3<<32 | 57},
		{"since 5.5: the id", fileIDKernfs, now, 1<<40 | 9},
		{"an unknown type", 0x81, now, 0},
		{"too short", fileIDKernfs, now[:7], 0},
	} {
		got, err := decodeHandle(row.kind, row.b)
		if got != row.want || (err == nil) != (row.want != 0) {
			t.Errorf("%s: %#x, %v", row.is, got, err)
		}
	}
	for id, want := range map[uint64]bool{1: true, 1<<32 | 1: true, 2: false, 2<<32 | 1: false, 1 << 32: false, 0: false} {
		if IsTopCgroup(id) != want {
			t.Errorf("IsTopCgroup(%#x) is %v", id, !want)
		}
	}
}
