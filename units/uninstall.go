package units

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/instance"
)

// uninstall plans the removal of all that is ours, whatever starts things now:
// the init system may have been changed since.
func (p *planner) uninstall(ctx context.Context) error {
	touched := false
	for _, name := range []string{ServiceName, MountUnitName(DefaultBPFFS)} {
		ours, err := p.dropUnit(ctx, name)
		if err != nil {
			return err
		}
		touched = touched || ours
	}
	if _, offline := p.m.(*files); touched && p.m != nil && !offline {
		p.add(Action{Kind: instance.KindReload, Path: "systemd", run: p.m.Reload})
	}
	if err := errors.Join(p.dropOpenRC(), p.dropFstab(), p.dropBinary()); err != nil {
		return err
	}
	p.r.Statement = "After a reboot nothing of firsthop starts on this host."
	stays, err := p.staysEnabled()
	if err != nil {
		return err
	}
	if stays != "" {
		p.r.Statement = "After a reboot " + stays + " starts firsthop again, which is a package's: remove the package, or disable the unit."
		p.warn("%s is a package's and stays enabled: remove the package, or systemctl disable %s, or it starts firsthop again at the next boot", stays, ServiceName)
	}
	return nil
}

// dropUnit plans the end of one unit: links, activity, file.
func (p *planner) dropUnit(ctx context.Context, name string) (ours bool, err error) {
	own := path.Join(systemDir, name)
	p.sweep(systemDir)
	n, err := p.t.look(own)
	if err != nil {
		return false, err
	}
	_, at, err := p.files().find(name)
	if err != nil {
		return false, err
	}
	switch {
	case n.exists && !n.isOurs():
		p.note("%s is not ours and left as it is", own)
		return false, nil
	case !n.exists && at != "" && (p.Owned == nil || !p.Owned(instance.KindEnable, name)):
		p.note("%s is not ours and left as it is", at)
		return false, nil
	}
	before := len(p.r.Actions)
	p.disable(name)
	if p.m != nil && name == ServiceName {
		if s, err := p.m.State(ctx, name); err == nil && s.ActiveState == "active" {
			p.add(Action{Kind: instance.KindStop, Path: name, Old: "active", New: "inactive", run: func(ctx context.Context) error { return p.m.Stop(ctx, name) }})
		}
	}
	if n.exists {
		p.remove(own, "ours", string(n.data))
	}
	return len(p.r.Actions) > before, nil
}

// dropBinary plans the removal of the host's copy and of directories that it
// was alone in.
func (p *planner) dropBinary() error {
	dir := path.Dir(BinaryPath)
	p.sweep(dir)
	n, err := p.t.lstat(BinaryPath)
	if err != nil {
		return err
	}
	if n.exists {
		if !p.isOurBinary(n) {
			p.note("%s is not ours and left as it is", BinaryPath)
			return nil
		}
		p.remove(BinaryPath, "ours", "")
	}
	going := func(name string) bool { // by what is planned already
		return slices.ContainsFunc(p.r.Actions, func(a Action) bool {
			return (a.Kind == instance.KindRemove || a.Kind == instance.KindRmdir) && a.Path == name
		})
	}
	for ; dir != "/"; dir = path.Dir(dir) {
		owned, err := p.ownsDir(dir)
		if err != nil || !owned {
			return err
		}
		if !p.t.exists(dir) { // an earlier run came that far
			continue
		}
		for _, name := range p.t.names(dir) {
			if !going(path.Join(dir, name)) {
				return nil
			}
		}
		p.rmdir(dir)
	}
	return nil
}

// ownsDir says whether we made a directory: by the record, which has it as
// the links on the way resolved, else by its name.
func (p *planner) ownsDir(dir string) (bool, error) {
	if p.Owned == nil {
		return dir == "/opt/firsthop" || strings.HasPrefix(dir, "/opt/firsthop/"), nil
	}
	at, err := p.t.dir(dir)
	if err != nil {
		return false, err
	}
	return p.Owned(instance.KindMkdir, strings.TrimSuffix(strings.TrimPrefix(at, p.t.root), "/")), nil
}

func (p *planner) rmdir(dir string) {
	p.add(Action{Kind: instance.KindRmdir, Path: dir, Old: "empty directory", New: "absent", run: func(context.Context) error {
		at, err := p.t.dir(dir)
		if err != nil {
			return err
		}
		if err := os.Remove(strings.TrimSuffix(at, "/")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}})
}
