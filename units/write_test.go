package units

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// A new file carries the label of its siblings, the binary that of /usr/bin.
func TestReplaceFileKeepsSELinuxLabels(t *testing.T) {
	h := newHost(t, with(systemd252, systemDir+"/other.service", "[Unit]\n", "/usr/bin/", ""))
	set := func(p, label string) {
		t.Helper()
		if err := setLabel(h.path(p), label); err != nil {
			t.Skipf("no right to set %s here: %v", selinuxAttr, err)
		}
	}
	set(systemDir+"/other.service", "system_u:object_r:systemd_unit_file_t:s0")
	set("/usr/bin", "system_u:object_r:bin_t:s0")
	mustInstall(t, h.config())
	for p, want := range map[string]string{servicePath: "system_u:object_r:systemd_unit_file_t:s0", BinaryPath: "system_u:object_r:bin_t:s0"} {
		if got := label(h.path(p)); got != want {
			t.Errorf("label of %s = %q, want %q", p, got, want)
		}
	}
	// Rewritten, it keeps the label that it has, whatever gave it.
	set(servicePath, "system_u:object_r:custom_t:s0")
	c := h.config()
	c.Args = []string{"init", "--boot", "--x"}
	mustInstall(t, c)
	if got := label(h.path(servicePath)); got != "system_u:object_r:custom_t:s0" {
		t.Errorf("label after a rewrite = %q", got)
	}
}
func setLabel(p, label string) error {
	return unix.Lsetxattr(p, selinuxAttr, append([]byte(label), 0), 0)
}

func label(p string) string {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(p, selinuxAttr, buf)
	if err != nil {
		return ""
	}
	return string(bytes.TrimRight(buf[:n], "\x00"))
}
