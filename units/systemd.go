package units

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/instance"
)

// install plans by who starts things on the host.
func (p *planner) install(ctx context.Context) error {
	switch p.init.Kind {
	case Systemd:
		return p.installSystemd(ctx)
	case OpenRC:
		return p.installOpenRC()
	case FstabInit:
		return p.installFstab()
	}
	why := ""
	if p.init.Source != "" {
		why = " (" + p.init.Source + ")"
	}
	p.r.Statement = fmt.Sprintf("Nothing survives a reboot: neither systemd nor OpenRC runs on this host%s, and nothing is known to read its /etc/fstab. "+
		"The bpffs and the Service IP come back when firsthop init runs again, as its DaemonSet does.", why)
	return nil
}

func (p *planner) installSystemd(ctx context.Context) error {
	// Looked at first: a mask is the administrator's word, and stays.
	svc, at, err := p.files().find(ServiceName)
	if err != nil {
		return err
	}
	if svc.isMasked() {
		p.warn("%s is masked by %s, which is respected: systemctl unmask it to have firsthop start at boot", ServiceName, at)
		p.r.Statement = "Nothing of firsthop starts at boot, because " + ServiceName + " is masked. " + p.bpffsStatement(false)
		return nil
	}
	pkg, pkgAt, err := p.files().findIn(packagePath, ServiceName)
	if err != nil {
		return err
	}
	if pkgAt != "" && !pkg.isMasked() {
		return p.installPackaged(ctx, pkg, pkgAt)
	}
	runnable, err := p.binary()
	if err != nil {
		return err
	}
	if err := p.mountUnit(); err != nil {
		return err
	}
	opts, err := ServiceUnit(p.Config, p.init.Version)
	if err != nil {
		return err
	}
	if p.init.Version == 0 {
		p.note("the version of systemd is not known: the service has no system call filter, and /sys/fs/bpf no mount unit")
	}
	own := path.Join(systemDir, ServiceName)
	data := render(opts)
	if err := p.text(own, data, 0o644); err != nil {
		return err
	}
	if err := p.enable(ServiceName, data); err != nil {
		return err
	}
	return p.finishSystemd(ctx, own, path.Dir(BinaryPath), runnable, ServiceName)
}

// finishSystemd plans and says what is the same for our unit and a package's:
// own is its path, whose its name in the statement.
func (p *planner) finishSystemd(ctx context.Context, own, programDir string, runnable bool, whose string) error {
	p.dropIns()
	p.preset(ServiceName)
	if err := p.reload(ctx, own); err != nil {
		return err
	}
	gone, err := p.volatile(systemDir, programDir)
	if err != nil {
		return err
	}
	forgotten, err := p.volatile(p.StateDir)
	if err != nil {
		return err
	}
	p.r.Survives = runnable && !gone && !forgotten
	p.r.Statement = "After a reboot " + whose + " makes the Service IP work before the kubelet starts, from the last known good addresses. " + p.bpffsStatement(true)
	switch {
	case runnable && !gone && forgotten:
		p.r.Statement = "After a reboot " + whose + " runs, but the saved addresses are gone: the Service IP works as soon as an API server is found by other means. " + p.bpffsStatement(true)
	case !p.r.Survives:
		p.r.Statement = "The Service IP does not survive a reboot, see the warnings. " + p.bpffsStatement(false)
	}
	return nil
}

// files is the Manager for the links alone: a plan must not ask systemd about
// files that it has not read yet.
func (p *planner) files() *files { return &files{t: p.t, version: p.init.Version} }

// bpffsStatement says who mounts the bpffs at boot.
func (p *planner) bpffsStatement(service bool) string {
	name := MountUnitName(p.BPFFS)
	switch {
	case p.BPFFS == DefaultBPFFS && p.init.Version >= apiBPFFS:
		return fmt.Sprintf("systemd %d mounts %s itself, and %s where that did not happen.", p.init.Version, p.BPFFS, ServiceName)
	case p.BPFFS == DefaultBPFFS && needsMountUnit(p.Config, p.init.Version):
		return fmt.Sprintf("%s mounts %s, because systemd does not before version %d (here %d).", name, p.BPFFS, apiBPFFS, p.init.Version)
	case service:
		return fmt.Sprintf("%s mounts %s where nothing else has.", ServiceName, p.BPFFS)
	}
	return fmt.Sprintf("Nothing is known to mount %s.", p.BPFFS)
}

// mountUnit plans sys-fs-bpf.mount: written where systemd is too old to mount
// /sys/fs/bpf, removed where it was upgraded since and refuses ours.
func (p *planner) mountUnit() error {
	if p.BPFFS != DefaultBPFFS {
		return nil
	}
	name := MountUnitName(p.BPFFS)
	own := path.Join(systemDir, name)
	n, err := p.t.look(own)
	if err != nil {
		return err
	}
	needed := needsMountUnit(p.Config, p.init.Version)
	line, err := p.fstabLine()
	if err != nil {
		return err
	}
	if line != "" && !needed {
		p.warn("/etc/fstab mounts %s, and so does systemd: `mount -a` may put a second bpffs over the first; remove the line %q", p.BPFFS, line)
	}
	switch {
	case n.isMasked():
		p.note("%s is masked, which is left as it is", own)
	case n.exists && !n.isOurs() && needed:
		p.note("%s is not ours: it is used and left as it is", own)
	case n.exists && !n.isOurs():
		p.note("%s is not ours and left as it is: systemd 239 and later refuses it (bad-setting) and mounts %s itself", own, p.BPFFS)
	case n.exists && p.init.Version >= apiBPFFS:
		p.disable(name)
		p.remove(own, "ours, refused by systemd since it was upgraded to "+fmt.Sprint(p.init.Version), string(n.data))
	case needed && line != "":
		p.note("/etc/fstab mounts %s with the line %q: no mount unit is needed", p.BPFFS, line)
	case needed:
		data := render(MountUnit(p.BPFFS))
		if err := p.text(own, data, 0o644); err != nil {
			return err
		}
		return p.enable(name, data)
	}
	return nil
}

// enable plans the links that the unit file asks for, when one is missing.
func (p *planner) enable(name string, data []byte) error {
	var missing []string
	for _, dir := range installSection(data) {
		link := path.Join(systemDir, dir, name)
		n, err := p.t.lstat(link)
		if err != nil {
			return err
		}
		if n.exists && !n.isLink() {
			return fmt.Errorf("%s is %w: a link is expected there", link, ErrForeign)
		}
		if !n.exists {
			missing = append(missing, link)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for _, l := range missing {
		st, err := p.t.fsOf(path.Dir(l))
		if err != nil {
			return err
		}
		if st.readOnly {
			return fmt.Errorf("make link %s: the file system is %w", l, ErrReadOnly)
		}
	}
	p.add(Action{Kind: instance.KindEnable, Path: name, Old: "disabled", New: strings.Join(missing, " "), run: func(ctx context.Context) error { return p.m.Enable(ctx, name) }})
	return nil
}

func (p *planner) disable(name string) {
	links := p.files().links(name)
	if len(links) == 0 {
		return
	}
	p.add(Action{Kind: instance.KindDisable, Path: name, Old: strings.Join(links, " "), New: "disabled", former: strings.Join(links, " "),
		run: func(ctx context.Context) error {
			if p.m != nil {
				if err := p.m.Disable(ctx, name); err != nil {
					return err
				}
			}
			// systemd removes no link to a unit file that is gone already.
			return p.files().Disable(ctx, name)
		}})
}

// reload plans a daemon-reload when units change, or when an earlier run was
// stopped between its last change and its reload.
func (p *planner) reload(ctx context.Context, own string) error {
	changed := slices.ContainsFunc(p.r.Actions, func(a Action) bool {
		return a.Kind == instance.KindEnable || a.Kind == instance.KindDisable || strings.HasPrefix(a.Path, systemDir+"/")
	})
	if !changed && p.t.exists(own) {
		s, err := p.m.State(ctx, ServiceName)
		if err != nil {
			return err
		}
		changed = s.NeedDaemonReload || s.LoadState == "not-found"
	}
	if _, ok := p.m.(*files); changed && !ok {
		p.add(Action{Kind: instance.KindReload, Path: "systemd", run: p.m.Reload})
	}
	return nil
}

// verify reads back what the init system makes of the service.
func (p *planner) verify(ctx context.Context) error {
	if p.m == nil {
		return nil
	}
	s, err := p.m.State(ctx, ServiceName)
	if err != nil {
		return fmt.Errorf("verify %s: %w", ServiceName, err)
	}
	p.r.Unit = &s
	if s.LoadState == "masked" {
		return nil // said in the plan
	}
	if s.LoadState != "loaded" || s.UnitFileState != "enabled" || s.NeedDaemonReload {
		p.r.Survives = false
		return fmt.Errorf("verify %s: installed, but systemd has load state %q, unit file state %q, needs reload %v of %q: see systemctl status",
			ServiceName, s.LoadState, s.UnitFileState, s.NeedDaemonReload, s.FragmentPath)
	}
	return nil
}

// dropIns names the administrator's drop-ins, and warns of those that would
// hide the service's mounts from the host.
func (p *planner) dropIns() {
	for _, base := range searchPath {
		dir := path.Join(base, ServiceName+".d")
		for _, name := range p.t.names(dir) {
			if !strings.HasSuffix(name, ".conf") {
				continue
			}
			file := path.Join(dir, name)
			p.note("the drop-in %s applies and is left as it is", file)
			if n, err := p.t.look(file); err == nil {
				for _, d := range namespacingIn(n.data) {
					p.warn("%s has %s, which gives the service a mount namespace: the mounts it makes at boot stay in there", file, d)
				}
			}
		}
	}
}
