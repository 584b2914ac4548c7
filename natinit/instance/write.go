package instance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Writing says how a file is replaced. The zero value is a file of ours that only root may read, and that needs not
// survive a loss of power.
type Writing struct {
	Mode    fs.FileMode          // exactly, whatever the umask; 0 is 0600
	Durable bool                 // after the return there is the new file, whatever happens
	Prepare func(*os.File) error // before it takes its place: owner, labels
	Temp    string               // begins the name of the temporary file; "" is what Leftovers knows
}

// WriteFile is Replace with contents that are known.
func WriteFile(path string, data []byte, how Writing) error {
	return Replace(path, bytes.NewReader(data), how)
}

// Replace puts a new file at a path in one step for everybody who looks: written beside it, and renamed over it. A link
// at that name is replaced, not followed. After a loss of power there is the old file or the new one.
func Replace(path string, contents io.Reader, how Writing) error {
	d, err := Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.replace(filepath.Base(path), contents, how)
}

func (d *Dir) replace(name string, contents io.Reader, how Writing) error {
	f, temp, err := d.createTemp(name, how.Temp)
	if err != nil {
		return err
	}
	if err = errors.Join(how.fill(f, contents), f.Close()); err == nil {
		err = d.Rename(temp, name)
	}
	if err != nil {
		_ = d.Remove(temp)
		return err
	}
	if !how.Durable {
		return nil
	}
	return d.Sync()
}

func (how Writing) fill(f *os.File, contents io.Reader) error {
	if _, err := io.Copy(f, contents); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if how.Mode == 0 {
		how.Mode = 0o600
	}
	if err := f.Chmod(how.Mode.Perm()); err != nil {
		return err
	}
	if how.Prepare != nil {
		if err := how.Prepare(f); err != nil {
			return err
		}
	}
	if how.Durable {
		return f.Sync()
	}
	return nil
}

func (d *Dir) createTemp(name, prefix string) (*os.File, string, error) {
	if prefix == "" {
		prefix = tempPrefix(name)
	}
	for {
		temp := fmt.Sprintf("%s%08x", prefix, rand.Uint32())
		fd, err := unix.Openat(d.Fd(), temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, "", &fs.PathError{Op: "create", Path: d.at(temp), Err: err}
		}
		return os.NewFile(uintptr(fd), d.at(temp)), temp, nil
	}
}
