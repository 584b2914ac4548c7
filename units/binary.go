package units

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/firsthop/firsthop/natinit/instance"
)

// module is what the build information of our binary says.
const module = "github.com/firsthop/firsthop"

// describe is a file in an action: enough to see that two differ.
func describe(data []byte, mode fs.FileMode) string {
	sum := sha256.Sum256(data)
	return describeSum(sum[:], mode)
}

func describeFile(at string, mode fs.FileMode) (string, error) {
	sum, err := hashFile(at)
	return describeSum(sum, mode), err
}

func describeSum(sum []byte, mode fs.FileMode) string {
	return fmt.Sprintf("sha256 %.8x, mode %04o", sum, mode.Perm())
}

// sameContents compares two files byte by byte. It runs at every start of the
// init stage on a binary of many megabytes: several times faster than hashing
// both, and nothing to do when the installed binary is the one that runs.
func sameContents(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, fmt.Errorf("read the binary to install: %w", err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	sa, err := fa.Stat()
	if err != nil {
		return false, err
	}
	sb, err := fb.Stat()
	if err != nil || os.SameFile(sa, sb) || sa.Size() != sb.Size() {
		return err == nil && os.SameFile(sa, sb), err
	}
	ba, bb := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		na, err := io.ReadFull(fa, ba)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, err
		}
		nb, errB := io.ReadFull(fb, bb)
		if errB != nil && errB != io.EOF && errB != io.ErrUnexpectedEOF {
			return false, errB
		}
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		if err != nil { // the end of both
			return true, nil
		}
	}
}

func hashFile(at string) ([]byte, error) {
	f, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// binary plans the host's own copy of firsthop. It is compared by its
// contents, so the same version is never written twice. runnable is false when
// there is none and none to copy.
func (p *planner) binary() (runnable bool, err error) {
	dir := path.Dir(BinaryPath)
	st, err := p.t.fsOf(dir)
	if err != nil {
		return false, err
	}
	if st.noExec {
		return false, fmt.Errorf("install %s: its file system is %w, nothing there can be started", BinaryPath, ErrNoExec)
	}
	n, err := p.t.lstat(BinaryPath)
	if err != nil {
		return false, err
	}
	if p.BinarySource == "" {
		if !n.exists {
			p.warn("%s is not there and none is given to copy: the service will be skipped at boot", BinaryPath)
		}
		return n.exists, nil
	}
	const mode = 0o755
	p.sweep(dir)
	a := Action{Kind: instance.KindWrite, Path: BinaryPath, Old: "absent"}
	if n.exists {
		same := false
		if n.mode.IsRegular() {
			if same, err = sameContents(p.BinarySource, n.at); err != nil {
				return false, err
			}
		}
		if same && n.mode.Perm() == mode && n.uid == os.Geteuid() {
			return true, nil
		}
		if !p.isOurBinary(n) {
			return false, fmt.Errorf("%s is %w (no build of %s): move it away, it is not overwritten", BinaryPath, ErrForeign, module)
		}
		if a.Old, err = describeFile(n.at, n.mode); err != nil {
			return false, err
		}
		a.former = a.Old
	}
	if a.New, err = describeFile(p.BinarySource, mode); err != nil {
		return false, fmt.Errorf("read the binary to install: %w", err)
	}
	if err := p.writable(dir); err != nil {
		return false, err
	}
	// The policy has bin_t for /opt/.*/bin (refpolicy, corecommands.fc), which
	// is the label of /usr/bin itself; a relabel then changes nothing.
	usrBin, err := p.t.dir("/usr/bin")
	if err != nil {
		return false, err
	}
	a.run = func(context.Context) error {
		src, err := os.Open(p.BinarySource)
		if err != nil {
			return err
		}
		defer src.Close()
		return replaceFile(n.at, mode, []string{n.at, usrBin}, src)
	}
	p.add(a)
	return true, nil
}

// isOurBinary tells our binary from another by its build information, or by
// the record.
func (p *planner) isOurBinary(n node) bool {
	if !n.mode.IsRegular() {
		return false
	}
	if p.Owned != nil && p.Owned(instance.KindWrite, BinaryPath) {
		return true
	}
	info, err := buildinfo.ReadFile(n.at)
	return err == nil && info.Main.Path == module
}
