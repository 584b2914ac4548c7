package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Configure does what the packages' scripts would have done, as far as a boot needs it: no script has to be run as root
// on the machine that makes it. Root is a copy of a Tree, and is changed.
func Configure(ctx context.Context, root string) error {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} { // merged, as the installer does
		at := filepath.Join(root, dir)
		if info, err := os.Lstat(at); err == nil && info.IsDir() {
			cp := exec.CommandContext(ctx, "cp", "--archive", "--no-target-directory", at, filepath.Join(root, "usr", dir))
			if out, err := cp.CombinedOutput(); err != nil {
				return fmt.Errorf("merge /%s: %w: %s", dir, err, out)
			}
			if err := os.RemoveAll(at); err != nil {
				return err
			}
			if err := os.Symlink("usr/"+dir, at); err != nil {
				return err
			}
		}
	}
	for _, dir := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	accounts := map[string]string{"passwd": "messagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n", "group": "messagebus:x:100:\n"}
	for name, more := range accounts {
		master, err := os.ReadFile(filepath.Join(root, "usr/share/base-passwd", name+".master"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), append(master, more...), 0o644); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/hostname": "node\n",
		"etc/fstab":    "", // PID 1 of the initramfs has mounted the root
		// One that is not empty: otherwise it would be a first boot, at which systemd enables all that there is.
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		// Compiled by a script of udev's. Without one, every first boot takes 8 s to write another to /etc/udev.
		"usr/lib/udev/hwdb.bin": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
