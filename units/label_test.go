package units

import (
	"bytes"

	"golang.org/x/sys/unix"
)

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
