package units

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/firsthop/firsthop/natinit/instance"
)

const fstabPath = "/etc/fstab"

// fstabEntry is the line for the bpffs; its end says whose it is. Readers take
// six fields and leave the rest (getmntent(3), libmount).
const fstabEntry = "bpffs " + DefaultBPFFS + " bpf rw,nosuid,nodev,noexec,relatime,mode=0700 0 0  # firsthop"

// fstabTarget returns the mount point of a line of fstab, "" for a comment or
// an incomplete line. Blanks in it are written as \040 (fstab(5)).
func fstabTarget(line string) string {
	f := strings.Fields(line)
	if len(f) < 3 || strings.HasPrefix(f[0], "#") {
		return ""
	}
	return path.Clean(unescape(f[1]))
}

// fstabLine returns the first line for the bpffs mount point, ours or not, or "".
func (p *planner) fstabLine() (string, error) {
	n, err := p.lookFstab()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(n.data)) {
		if fstabTarget(line) == DefaultBPFFS {
			return strings.TrimRight(line, "\r\n"), nil
		}
	}
	return "", nil
}

// lookFstab reads fstab where it really is: some hosts have a link there.
func (p *planner) lookFstab() (node, error) {
	at, err := p.t.dir(fstabPath)
	if err != nil {
		return node{}, err
	}
	return p.t.look("/" + strings.Trim(strings.TrimPrefix(at, p.t.root), "/"))
}

// addFstab puts our line at the end. It keeps whether the last line ends in a
// newline, so that dropFstab can restore each byte.
func addFstab(data []byte) []byte {
	if len(data) == 0 || bytes.HasSuffix(data, []byte("\n")) {
		return append(bytes.Clone(data), fstabEntry+"\n"...)
	}
	return append(bytes.Clone(data), "\n"+fstabEntry...)
}

// cutFstab takes our line out again, wherever it is now.
func cutFstab(data []byte) []byte {
	var out []byte
	cutLast := false
	for line := range bytes.Lines(data) {
		cutLast = string(bytes.TrimRight(line, "\n")) == fstabEntry && !bytes.HasSuffix(line, []byte("\n"))
		if string(bytes.TrimRight(line, "\n")) != fstabEntry {
			out = append(out, line...)
		}
	}
	if cutLast { // it had no newline, and the one before it was ours
		out = bytes.TrimSuffix(out, []byte("\n"))
	}
	return out
}

// installFstab plans the line, unless anything mounts there already: `mount -a`
// with a second line stacks a second bpffs over the pins of the first.
func (p *planner) installFstab() error {
	const rest = " The Service IP does not survive: it comes back when firsthop init runs again, as its DaemonSet does."
	if p.BPFFS != DefaultBPFFS {
		p.r.Statement = "Nothing mounts " + p.BPFFS + " after a reboot." + rest
		return nil
	}
	line, err := p.fstabLine()
	if err != nil {
		return err
	}
	p.r.Statement = fmt.Sprintf("After a reboot the line in %s mounts %s, if this host's init (%s) mounts all that is in there.", fstabPath, DefaultBPFFS, p.init.Source) + rest
	if line != "" {
		if line != fstabEntry {
			p.note("%s has a line for %s already: %q", fstabPath, DefaultBPFFS, line)
		}
		return nil
	}
	return p.editFstab(addFstab)
}

func (p *planner) dropFstab() error {
	n, err := p.lookFstab()
	if err != nil || !n.exists {
		return err
	}
	p.sweep(path.Dir(fstabPath))
	if bytes.Equal(cutFstab(n.data), n.data) {
		return nil
	}
	return p.editFstab(cutFstab)
}

// editFstab plans a change of fstab. Somebody may edit it between the plan and
// its execution, so it is read again then.
func (p *planner) editFstab(edit func([]byte) []byte) error {
	n, err := p.lookFstab()
	if err != nil {
		return err
	}
	p.sweep(path.Dir(fstabPath))
	st, err := p.t.fsOf(path.Dir(fstabPath))
	if err != nil {
		return err
	}
	if st.readOnly {
		return fmt.Errorf("write %s: the file system is %w", fstabPath, ErrReadOnly)
	}
	p.add(Action{Kind: instance.KindWrite, Path: fstabPath, Old: describe(n.data, n.mode), New: describe(edit(n.data), n.mode), former: string(n.data),
		run: func(context.Context) error {
			n, err := p.lookFstab()
			if err != nil {
				return err
			}
			return replaceFile(n.at, n.mode, []string{n.at}, bytes.NewReader(edit(n.data)))
		}})
	return nil
}
