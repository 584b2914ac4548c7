package units

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/natinit/instance"
)

// planner collects the actions of one report. Its methods look only; what
// changes the host is in the actions.
type planner struct {
	Config
	t    tree
	m    Manager
	init Init
	r    *Report
}

// patience bounds a whole plan, install or uninstall: a systemd that does not
// answer must not hold up a pod for good. On a machine that has much to do, a
// reload of systemd was seen to take over 20 s; systemctl itself waits for 90.
const patience = 60 * time.Second

// PlanInstall says what Install would do, and changes nothing.
func PlanInstall(ctx context.Context, c Config) (Report, error) {
	return run(ctx, c, (*planner).install)
}

// PlanUninstall says what Uninstall would do, and changes nothing.
func PlanUninstall(ctx context.Context, c Config) (Report, error) {
	return run(ctx, c, (*planner).uninstall)
}

// Install makes firsthop start at boot. The second call changes nothing. On an
// error the report says how far it came, and the next call completes it.
// ErrForeign, ErrReadOnly and ErrNoExec come before the first change.
//
// It does not start the service: who installs has just done its work.
func Install(ctx context.Context, c Config) (Report, error) {
	return run(ctx, c, (*planner).install, (*planner).apply, (*planner).verify)
}

// Uninstall removes what Install made and leaves everything else: files
// without our marker, drop-ins, masks, /etc/default/firsthop.
func Uninstall(ctx context.Context, c Config) (Report, error) {
	return run(ctx, c, (*planner).uninstall, (*planner).apply)
}

func run(ctx context.Context, c Config, steps ...func(*planner, context.Context) error) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p, done, err := newPlanner(ctx, c)
	if err != nil {
		return Report{}, err
	}
	defer done()
	for _, step := range steps {
		if err := step(p, ctx); err != nil {
			return *p.r, err
		}
	}
	return *p.r, nil
}

func newPlanner(ctx context.Context, c Config) (*planner, func(), error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	p := &planner{Config: c, t: newTree(c), r: &Report{Actions: []Action{}}}
	p.init = DetectInit(c.Root)
	if c.Offline {
		p.init = DetectInstalled(c.Root)
		c.sockets = []string{}
		p.Config.sockets = c.sockets
	}
	if c.initSystem != nil {
		p.init = *c.initSystem
	}
	closeManager := func() {}
	if p.init.Kind == Systemd {
		m, err := OpenManager(ctx, c)
		if c.manager == nil {
			closeManager = m.Close
		}
		if err != nil && !c.Offline {
			p.note("systemd is not asked, its files are used: %v", err)
		}
		p.m = m
		if v, err := m.Version(ctx); err == nil && parseVersion(v) > 0 && c.initSystem == nil {
			p.init.Version, p.init.Source = parseVersion(v), "D-Bus property Version, "+v
		}
		p.r.Over = "files"
		if d, ok := m.(*manager); ok {
			p.r.Over = d.socket
		}
	}
	p.r.Init = p.init
	return p, closeManager, nil
}

func (p *planner) note(format string, a ...any) {
	p.r.Notes = append(p.r.Notes, fmt.Sprintf(format, a...))
}

func (p *planner) warn(format string, a ...any) {
	p.r.Warnings = append(p.r.Warnings, fmt.Sprintf(format, a...))
}

func (p *planner) add(a Action) { p.r.Actions = append(p.r.Actions, a) }

// apply carries the plan out, each step recorded before it is done.
func (p *planner) apply(ctx context.Context) error {
	for i := range p.r.Actions {
		a := &p.r.Actions[i]
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s %s: %w", a.Kind, a.Path, err)
		}
		if err := p.Record(a.Kind, a.Path, a.former); err != nil {
			return fmt.Errorf("record %s of %s, which is not done: %w", a.Kind, a.Path, err)
		}
		if err := a.run(ctx); err != nil {
			return fmt.Errorf("%s %s: %w", a.Kind, a.Path, err)
		}
		a.Done = true
		p.Log.Debug("changed the host", "action", a.Kind, "path", a.Path)
	}
	return nil
}

// writable says why a file of the directory can't be written, and plans the
// directories that are missing on the way.
func (p *planner) writable(dir string) error {
	st, err := p.t.fsOf(dir)
	if err != nil {
		return err
	}
	if st.readOnly {
		return fmt.Errorf("write to %s: the file system is %w, as on an immutable host: put the boot unit into its image, or leave the boot to the DaemonSet", dir, ErrReadOnly)
	}
	at, err := p.t.dir(dir)
	if err != nil {
		return err
	}
	var missing []string
	for at = strings.TrimSuffix(at, "/"); len(at) > len(p.t.root); at = path.Dir(at) {
		fi, err := os.Stat(at)
		if err == nil {
			if !fi.IsDir() {
				return fmt.Errorf("make directory %s: a file is in the way", at)
			}
			break
		}
		missing = append(missing, at)
	}
	for _, at := range slices.Backward(missing) {
		p.mkdir(at)
	}
	return nil
}

// volatile reports, with a warning for each, whether one of the directories is on
// a file system in memory, as /etc is on some immutable hosts.
func (p *planner) volatile(dirs ...string) (bool, error) {
	any := false
	if p.Offline {
		return false, nil // where an image is built says nothing of where it runs
	}
	for _, dir := range dirs {
		st, err := p.t.fsOf(dir)
		if err != nil {
			return false, err
		}
		if st.volatile != "" {
			p.warn("%s is on %s: what is written there is gone after a reboot", dir, st.volatile)
			any = true
		}
	}
	return any, nil
}

func (p *planner) mkdir(at string) {
	name := strings.TrimPrefix(at, p.t.root)
	if slices.ContainsFunc(p.r.Actions, func(a Action) bool { return a.Kind == instance.KindMkdir && a.Path == name }) {
		return
	}
	p.add(Action{Kind: instance.KindMkdir, Path: name, Old: "absent", New: "directory, mode 0755", run: func(context.Context) error {
		if err := os.Mkdir(at, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		return os.Chmod(at, 0o755) // whatever the umask
	}})
}

// text plans a text file of ours. It returns ErrForeign, with the path, for
// anything else that stands there.
func (p *planner) text(name string, want []byte, mode fs.FileMode, like ...string) error {
	n, err := p.t.look(name)
	if err != nil {
		return err
	}
	p.sweep(path.Dir(name))
	a := Action{Kind: instance.KindWrite, Path: name, Old: "absent", New: describe(want, mode)}
	switch {
	case !n.exists:
	case !n.isOurs():
		return fmt.Errorf("%s is %w (no line %q): remove it or keep it, it is not overwritten", name, ErrForeign, Marker)
	case bytes.Equal(n.data, want) && n.mode.Perm() == mode:
		return nil
	default:
		a.Old, a.former = describe(n.data, n.mode), string(n.data)
	}
	if err := p.writable(path.Dir(name)); err != nil {
		return err
	}
	like = append([]string{n.at}, append(p.siblings(name), like...)...)
	a.run = func(context.Context) error { return replaceFile(n.at, mode, like, bytes.NewReader(want)) }
	p.add(a)
	return nil
}

// siblings are files whose SELinux label a new one should carry: others of its
// kind in the directory, then the directory.
func (p *planner) siblings(name string) []string {
	dir := path.Dir(name)
	at, err := p.t.dir(dir)
	if err != nil {
		return nil
	}
	var like []string
	for _, other := range p.t.names(dir) {
		if path.Ext(other) != path.Ext(name) || other == path.Base(name) {
			continue
		}
		if fi, err := os.Lstat(at + other); err == nil && fi.Mode().IsRegular() {
			like = append(like, at+other)
		}
	}
	return append(like, at)
}

// sweep plans the removal of temporary files that a killed run left in dir.
func (p *planner) sweep(dir string) {
	for _, name := range p.t.leftovers(dir) {
		if !slices.ContainsFunc(p.r.Actions, func(a Action) bool { return a.Path == name }) {
			p.remove(name, "left by a run that was killed", "")
		}
	}
}

// remove plans the removal of a file or link.
func (p *planner) remove(name, old, former string) {
	p.add(Action{Kind: instance.KindRemove, Path: name, Old: old, New: "absent", former: former, run: func(context.Context) error {
		at, err := p.t.file(name)
		if err != nil {
			return err
		}
		if err := os.Remove(at); err != nil && !os.IsNotExist(err) {
			return err
		}
		return syncDir(path.Dir(at))
	}})
}
