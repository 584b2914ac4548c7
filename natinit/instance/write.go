package instance

import (
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

// Replace puts a new file at a name in one step for everybody who looks: written beside it, and renamed over it. A link
// at that name is replaced, not followed. After a loss of power there is the old file or the new one.
func (d *Dir) Replace(name string, how Writing, write func(io.Writer) error) (err error) {
	f, temp, err := d.createTemp(name, how.Temp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = d.Remove(temp)
		}
	}()
	if err := write(f); err != nil {
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
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := d.Rename(temp, name); err != nil {
		return err
	}
	if !how.Durable {
		return nil
	}
	return d.Sync()
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

// Replace is Dir.Replace in the directory of path.
func Replace(path string, how Writing, write func(io.Writer) error) error {
	d, err := Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Replace(filepath.Base(path), how, write)
}

// WriteFile is Replace with contents that are known.
func WriteFile(path string, data []byte, how Writing) error {
	return Replace(path, how, Bytes(data))
}

// Bytes writes data, for Replace.
func Bytes(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}
