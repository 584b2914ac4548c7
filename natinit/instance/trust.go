package instance

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// ErrUntrusted says that somebody else than root may have written what was to be read.
var ErrUntrusted = hostfs.ErrUntrusted

// Trust says who else may change what a directory's path leads to.
type Trust struct {
	// Doubts say, each in a few words, why nothing in the directory is believed.
	Doubts []string
	// Exposed are the directories on the way that everybody may write, but with the sticky bit.
	Exposed []string

	repairs []string
	last    string // a sticky directory, which is all right on the way and not at its end
}

// Examine opens a directory to see who else may change it, or what its path leads to.
func Examine(dir string) (Trust, error) {
	fd, trust, err := walk(dir)
	if err != nil {
		return Trust{}, err
	}
	unix.Close(fd)
	return trust, nil
}

func (t *Trust) doubt(path, format string, args ...any) {
	text := path + " " + fmt.Sprintf(format, args...)
	if !slices.Contains(t.Doubts, text) { // a link may lead over the same directories again
		t.Doubts = append(t.Doubts, text)
	}
}

func (t *Trust) judge(path string, fd int, st unix.Stat_t) {
	t.last = ""
	foreign := !ours(st.Uid)
	if !foreign {
		st.Uid = 0
	}
	if why := hostfs.Judge(fd, &st); why != "" {
		t.doubt(path, "%s", why)
	}
	if foreign {
		t.repairs = append(t.repairs, "chown root:root "+path)
	}
	switch shared := st.Mode&0o022 != 0; {
	case shared && st.Mode&unix.S_ISVTX == 0:
		t.repairs = append(t.repairs, "chmod go-w "+path)
	case shared:
		t.last = path
		if !slices.Contains(t.Exposed, path) {
			t.Exposed = append(t.Exposed, path)
		}
	}
}

// finish is for the directory at the end of the way: everybody may put files into a sticky one.
func (t *Trust) finish(path string) {
	if t.last != path {
		return
	}
	t.Exposed = slices.DeleteFunc(t.Exposed, func(p string) bool { return p == path })
	t.doubt(path, "is writable by everybody")
	t.repairs = append(t.repairs, "chmod go-w "+path)
}

// Err says why what is in the directory can't be believed. It matches ErrUntrusted.
func (t Trust) Err() error {
	if len(t.Doubts) == 0 {
		return nil
	}
	return fmt.Errorf("%s; %w: %s", strings.Join(t.Doubts, "; "), ErrUntrusted, t.Repair())
}

// Repair is what makes the directory trusted again. What was put there meanwhile stays, so it is to be looked at.
func (t Trust) Repair() string {
	if len(t.repairs) == 0 {
		return "give another directory"
	}
	return strings.Join(t.repairs, " && ")
}

// Warnings are what to tell the administrator about a directory; what is its name ("run directory"), and consequence
// what follows from somebody else's owning it.
func (t Trust) Warnings(what, dir, consequence string) []string {
	var out []string
	if len(t.Doubts) > 0 {
		out = append(out, fmt.Sprintf("%s %s can be changed by others than root (%s): %s; to repair: %s",
			what, dir, strings.Join(t.Doubts, "; "), consequence, t.Repair()))
	}
	if len(t.Exposed) > 0 {
		out = append(out, fmt.Sprintf("%s %s lies below %s, where everybody may make files: move it to a place that only root may write",
			what, dir, strings.Join(t.Exposed, ", ")))
	}
	return out
}
