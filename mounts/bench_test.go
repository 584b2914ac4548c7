package mounts

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The usual case, a right mount being there, with few and with many others.
func BenchmarkFindBPFFS(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprintf("beside %d mounts", others), func(b *testing.B) {
			inOwnNamespace(b, func() {
				mount(b, "bpf", DefaultBPFFS, "bpf", usualFlags, "mode=0700")
				mount(b, "x", "/run", "tmpfs", 0, "")
				for i := range others {
					p := fmt.Sprintf("/run/%d", i)
					must(b, os.Mkdir(p, 0o755))
					mount(b, "x", p, "tmpfs", unix.MS_RDONLY, "")
				}
				for b.Loop() {
					if f, err := FindBPFFS(Config{Path: DefaultBPFFS, Explicit: true}); err != nil || f.State != BPFFSRight {
						b.Fatal(f.State, err)
					}
				}
			})
		})
	}
}

func BenchmarkFindHost(b *testing.B) {
	for b.Loop() {
		if _, err := FindHost(Config{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFindCgroup2(b *testing.B) {
	for b.Loop() {
		if g, err := FindCgroup2(Config{}); err != nil || g.Err() != nil {
			b.Fatal(err, g.Err())
		}
	}
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
