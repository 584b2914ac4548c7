package units

import (
	"bytes"
	"context"
	"os"
	"path"
	"strings"

	"github.com/firsthop/firsthop/natinit/instance"
)

const (
	openrcScript = "/etc/init.d/firsthop-init"
	openrcLink   = "/etc/runlevels/default/firsthop-init"
)

// OpenRCScript returns the service script for OpenRC. It runs after the local
// file systems and before kubelets and container runtimes, waits for no
// network, and mounts the bpffs itself where OpenRC has not (its sysfs script
// does so since 2025-04, OpenRC pull request 835), so it needs no line in fstab.
func OpenRCScript(c Config) ([]byte, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	words := []string{shellWord(BinaryPath)}
	for _, a := range c.Args {
		words = append(words, shellWord(a))
	}
	var before []string
	for _, name := range runtimes {
		if !strings.HasPrefix(name, "snap.") { // there are no snaps without systemd
			before = append(before, strings.TrimSuffix(name, ".service"))
		}
	}
	var b bytes.Buffer
	b.WriteString("#!/sbin/openrc-run\n" + Marker + "\n")
	b.WriteString("# The next install writes this file again: put settings into\n# " + EnvironmentFile + " (sourced, NAME=value lines).\n\n")
	b.WriteString(`description="firsthop: the Kubernetes API Service works before the kubelet starts"

depend() {
	after localmount sysfs cgroups bootmisc modules
	before ` + strings.Join(before, " ") + `
	keyword -prefix
}

start() {
	ebegin "Making the Kubernetes API Service reachable"
	if [ -r ` + EnvironmentFile + ` ]; then
		set -a
		. ` + EnvironmentFile + `
		set +a
	fi
	` + strings.Join(words, " ") + `
	eend $? "firsthop init failed; services start without it"
}
`)
	return b.Bytes(), nil
}

func (p *planner) installOpenRC() error {
	runnable, err := p.binary()
	if err != nil {
		return err
	}
	script, err := OpenRCScript(p.Config)
	if err != nil {
		return err
	}
	if err := p.text(openrcScript, script, 0o755); err != nil {
		return err
	}
	n, err := p.t.lstat(openrcLink)
	if err != nil {
		return err
	}
	if !n.exists { // as rc-update add
		if err := p.writable(path.Dir(openrcLink)); err != nil {
			return err
		}
		p.add(Action{Kind: instance.KindLink, Path: openrcLink, Old: "absent", New: openrcScript, run: func(context.Context) error {
			if err := os.Symlink(openrcScript, n.at); err != nil && !os.IsExist(err) {
				return err
			}
			return syncDir(path.Dir(n.at))
		}})
	}
	line, err := p.fstabLine()
	if err != nil {
		return err
	}
	mounter := "firsthop-init mounts " + p.BPFFS + " where nothing else has."
	switch {
	case line != "" && p.openrcMounts():
		p.warn("/etc/fstab mounts %s, and so does OpenRC: `mount -a` may put a second bpffs over the first; remove the line %q", DefaultBPFFS, line)
	case p.BPFFS == DefaultBPFFS && p.openrcMounts():
		mounter = "OpenRC mounts " + p.BPFFS + " itself."
	}
	gone, err := p.volatile(path.Dir(openrcScript), path.Dir(openrcLink), path.Dir(BinaryPath), p.StateDir)
	if err != nil {
		return err
	}
	p.r.Survives = runnable && !gone
	p.r.Statement = "After a reboot OpenRC runs firsthop-init, which makes the Service IP work before the kubelet starts, from the last known good addresses. " + mounter
	if !p.r.Survives {
		p.r.Statement = "The Service IP does not survive a reboot, see the warnings. " + mounter
	}
	return nil
}

// openrcMounts reports whether a script of OpenRC mounts the bpffs, as its
// sysfs script does since 2025-04.
func (p *planner) openrcMounts() bool {
	n, err := p.t.look("/etc/init.d/sysfs")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(n.data) {
		line = bytes.TrimSpace(line)
		if !bytes.HasPrefix(line, []byte("#")) && bytes.Contains(line, []byte(DefaultBPFFS)) {
			return true
		}
	}
	return false
}

func (p *planner) dropOpenRC() error {
	n, err := p.t.look(openrcScript)
	if err != nil {
		return err
	}
	if n.exists && !n.isOurs() {
		p.note("%s is not ours and left as it is", openrcScript)
		return nil
	}
	for _, level := range p.t.names("/etc/runlevels") {
		link := path.Join("/etc/runlevels", level, path.Base(openrcScript))
		if l, err := p.t.lstat(link); err == nil && l.isLink() {
			p.remove(link, "link to "+l.link, l.link)
		}
	}
	p.sweep(path.Dir(openrcScript))
	if n.exists {
		p.remove(openrcScript, "ours", string(n.data))
	}
	return nil
}
