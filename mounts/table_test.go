package mounts

import (
	"strings"
	"testing"
)

const tableSample = `22 27 0:21 / /proc rw,relatime - proc proc rw
30 23 0:40 / /sys/fs/bpf rw,nosuid shared:7 master:2 - bpf bpf rw,mode=700
31 30 0:41 / /sys/fs/bpf ro - bpf firsthop-0a rw
32 27 0:42 / /mnt/a\040b\134c\043d rw - tmpfs none rw
`

func TestReadTable(t *testing.T) {
	all := func([]byte) bool { return true }
	mounts, err := readTable(strings.NewReader(tableSample), all)
	must(t, err)
	if len(mounts) != 4 || mounts[3].Point != `/mnt/a b\c#d` || !mounts[1].Shared || mounts[2].Shared || !mounts[2].Ours() || mounts[1].Ours() {
		t.Errorf("%+v", mounts)
	}
	one, err := readTable(strings.NewReader(tableSample), mountPointIs(`/mnt/a b\c#d`))
	if err != nil || len(one) != 1 {
		t.Errorf("%+v, %v", one, err)
	}
	stack, _ := stackAt(mounts, "/sys/fs/bpf", 0)
	if len(stack) != 2 || stack[0].ID != 31 || stack[1].ID != 30 {
		t.Errorf("%+v", stack)
	}
	// Known by its id, the lower one has nothing below it; the other is not in
	// its stack.
	stack, hidden := stackAt(mounts, "/sys/fs/bpf", 30)
	if len(stack) != 1 || len(hidden) != 1 || hidden[0].ID != 31 {
		t.Errorf("%+v, %+v", stack, hidden)
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add(tableSample)
	f.Add("1 1 0:1 / / rw - rootfs rootfs rw")
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\n")
	f.Fuzz(func(t *testing.T, data string) {
		mounts, err := readTable(strings.NewReader(data), func([]byte) bool { return true })
		if err != nil {
			return
		}
		for _, m := range mounts {
			stack, hidden := stackAt(mounts, m.Point, m.ID)
			if len(stack) == 0 || stack[0].Point != m.Point {
				t.Fatalf("mount %+v is not in its stack %+v, %+v", m, stack, hidden)
			}
		}
	})
}

func FuzzEscapePath(f *testing.F) {
	f.Add("/a b")
	f.Add("/x\\040\n#")
	f.Fuzz(func(t *testing.T, p string) {
		p = "/" + p
		line := "1 1 0:1 / " + escapePath(p) + " rw - t s rw\n"
		mounts, err := readTable(strings.NewReader(line), mountPointIs(p))
		if err != nil || len(mounts) != 1 || mounts[0].Point != p {
			t.Fatalf("%q became %+v, %v", p, mounts, err)
		}
	})
}

func BenchmarkReadTable(b *testing.B) {
	line := "412 30 0:57 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/0123456789abcdef/rootfs rw,relatime shared:211 - overlay overlay rw,lowerdir=/a:/b,upperdir=/c,workdir=/d\n"
	text := strings.Repeat(line, 2000) + tableSample
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		m, err := readTable(strings.NewReader(text), mountPointIs(DefaultBPFFS))
		if err != nil || len(m) != 2 {
			b.Fatal(m, err)
		}
	}
}
