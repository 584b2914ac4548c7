package kubeproxy

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNfTables(t *testing.T) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	builtin := filepath.Join("modules", unix.ByteSliceToString(uts.Release[:]), "modules.builtin")
	for _, test := range []struct {
		name    string
		modules string // /proc/modules; "-": a kernel without modules
		builtin string // its path below root
		content string
		want    Answer
	}{
		{"a kernel without modules has it or not, but loads nothing", "-", "", "", Yes},
		{"loaded", "nf_tables 376832 1 nft_compat, Live 0x0000000000000000\n", "", "", Yes},
		{"one that depends on it is no proof", "x 1 0 - Live 0x0\nnf_tables_x 1 1 nf_tables, Live 0x0\n", "lib/" + builtin, "kernel/fs/ext4.ko\n", No},
		{"neither loaded nor built in", "ext4 1 0 - Live 0x0\n", "lib/" + builtin, "kernel/net/netfilter/nf_tables_set.ko\n", No},
		{"built in", "ext4 1 0 - Live 0x0\n", "lib/" + builtin, "kernel/net/netfilter/nf_tables.ko\n", Yes},
		{"built in, below /usr only", "ext4 1 0 - Live 0x0\n", "usr/lib/" + builtin, "kernel/net/netfilter/nf_tables.ko\n", Yes},
		{"not loaded, and no list of what is built in", "ext4 1 0 - Live 0x0\n", "", "", Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := NewDetector(Config{Root: t.TempDir(), Proc: t.TempDir()})
			if test.modules != "-" {
				mustWrite(t, filepath.Join(d.proc, "modules"), test.modules)
			}
			if test.builtin != "" {
				mustWrite(t, filepath.Join(d.root, test.builtin), test.content)
			}
			if got, why := d.nfTables(); got != test.want {
				t.Errorf("got %s (%s), want %s", got, why, test.want)
			}
		})
	}
}

func FuzzHasModule(f *testing.F) {
	for _, seed := range []string{"nf_tables 1 0 - Live 0x0\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		hasModule(b, "nf_tables")
	})
}
