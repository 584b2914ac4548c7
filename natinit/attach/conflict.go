package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/hostproc"
)

// ErrConflict says that a program of somebody else is attached in a way that
// keeps ours out. It is never detached or replaced.
var ErrConflict = errors.New("foreign program in the way")

// explain finds the reason of an EPERM: the kernel gives it both for a lack of
// rights and where the hook's list was attached with other flags, here or in a
// parent (kernel/bpf/cgroup.c, hierarchy_allows_attach).
func (l *ladder) explain(h bpf.Hook, err error) error {
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if what := l.site.conflict(h, l.cfg.Proc); what != "" {
		return fmt.Errorf("%s, which lets no second program in: "+
			"have its owner attach it with BPF_F_ALLOW_MULTI, or remove it: %w", what, ErrConflict)
	}
	return err
}

func (c openCgroup) conflict(h bpf.Hook, proc string) string {
	at, flags, ids := blockers(c.Path, h)
	if len(ids) == 0 {
		return ""
	}
	var names []string
	for _, id := range ids {
		names = append(names, nameProgram(id, proc))
	}
	how := "exclusively (no flags)"
	if flags&allowOverride != 0 {
		how = "with BPF_F_ALLOW_OVERRIDE"
	}
	return fmt.Sprintf("%s is attached to %s %s", strings.Join(names, " and "), at, how)
}

// blockers finds the programs that keep ours out of a hook, and the cgroup that
// they are attached to: ours, or the next above it that has any. A parent's
// program that may be overridden keeps nobody out.
func blockers(cgroup string, h bpf.Hook) (at string, flags uint32, ids []ebpf.ProgramID) {
	for at = cgroup; ; at = filepath.Dir(at) {
		dir, err := os.Open(at)
		if err != nil {
			return "", 0, nil
		}
		flags, ids, err = queryFlags(dir, h.Attach)
		dir.Close()
		switch {
		case err != nil: // left the hierarchy
			return "", 0, nil
		case len(ids) == 0 && filepath.Dir(at) != at:
		case flags&allowMulti != 0, at != cgroup && flags&allowOverride != 0:
			return "", 0, nil
		default:
			return at, flags, ids
		}
	}
}

// nameProgram says what an operator needs to find a program's owner.
func nameProgram(id ebpf.ProgramID, proc string) string {
	s := fmt.Sprintf("program %d", id)
	holders := programHolders(id, proc) // before we are one ourselves
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return s
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return s
	}
	var details []string
	details = append(details, "tag "+info.Tag)
	if uid, ok := info.CreatedByUID(); ok {
		details = append(details, fmt.Sprintf("loaded by uid %d", uid))
	}
	if len(holders) > 0 {
		details = append(details, "held by "+strings.Join(holders, ", "))
	}
	return fmt.Sprintf("%s %q (%s)", s, info.Name, strings.Join(details, ", "))
}

// programHolders finds processes with an open handle of a program, by the
// prog_id line of /proc/PID/fdinfo.
func programHolders(id ebpf.ProgramID, proc string) []string {
	if proc == "" {
		proc = "/proc"
	}
	want := "prog_id:\t" + strconv.Itoa(int(id)) + "\n"
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fdinfo", "*"))
	var out []string
	last := ""
	for _, f := range files {
		pid := filepath.Base(filepath.Dir(filepath.Dir(f)))
		if pid == last {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(data), want) {
			continue
		}
		last = pid
		comm, _ := os.ReadFile(filepath.Join(proc, pid, "comm"))
		out = append(out, fmt.Sprintf("pid %s (%s)", pid, hostproc.Printable(strings.TrimSpace(string(comm)))))
		if len(out) == 3 {
			break
		}
	}
	return out
}

// Conflict is a program of somebody else's that keeps ours out of a hook.
type Conflict struct {
	Hook string
	What string // which program, and how it is attached
}

func (c Conflict) String() string { return c.Hook + ": " + c.What }

// Conflicts looks at the hooks of a cgroup as an attach would find them, and
// changes nothing. proc is where processes are looked up; a wrong one only
// costs the names of owners.
func Conflicts(cgroup string, f bpf.Features, proc string) ([]Conflict, error) {
	return conflicts(Config{Target: Cgroup{Path: cgroup}, Programs: Balancer{Balancer: bpf.Balancer{UDP: true}, Features: f}, Proc: proc})
}

func conflicts(cfg Config) (found []Conflict, err error) {
	l, err := open(cfg)
	if err != nil {
		return nil, err
	}
	defer l.close()
	for _, h := range cfg.Programs.Hooks() {
		if _, err := l.site.programs(h); err != nil {
			return nil, fmt.Errorf("list programs of %s: %w", cfg.Target, err)
		}
		if what := l.site.conflict(h, cfg.Proc); what != "" {
			found = append(found, Conflict{h.Name, what})
		}
	}
	return found, nil
}

// CheckAttach says what of somebody else's would keep Attach from attaching, and changes nothing: something at one of our
// pins (its error matches bpf.ErrForeign), or a program (ErrConflict).
func CheckAttach(cfg Config) error {
	if err := checkPins(cfg.Pins, cfg.Target, cfg.Programs.Hooks()); err != nil {
		return err
	}
	found, err := conflicts(cfg)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("attach %s: %w", found[0], ErrConflict)
	}
	return err
}
