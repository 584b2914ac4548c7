package units

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/units/unitfile"
)

// PackageProgram is where a package (.deb, .rpm) has the program: /opt is not
// for packages (Filesystem Hierarchy Standard 3.0, section 3.13).
const PackageProgram = "/usr/bin/firsthop"

// PackageUnit returns firsthop-init.service as a package ships it, for systemd
// from 239 on. It is the unit that Install writes but for the program's path.
func PackageUnit() ([]byte, error) {
	opts, err := serviceUnit(Config{}, PackageProgram, apiBPFFS)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		if o.Name == "Documentation" {
			o.Value = "man:firsthop(8) " + o.Value
		}
	}
	return renderPackaged(opts, ""), nil
}

// packagePath is where packages have units, first hit wins.
var packagePath = searchPath[2:]

// installPackaged plans for a host whose package has a unit. That one is used
// as it is, and so is its program: a unit in /etc would hide it, upgrades
// included, and a second copy of the program would grow old. What an install
// made before the package came is handed over, with the unit enabled all the
// time.
func (p *planner) installPackaged(ctx context.Context, pkg node, at string) error {
	program := programOf(pkg.data)
	runnable := p.t.exists(program)
	var err error
	if program == "" || program == BinaryPath { // not one of our packages
		program = BinaryPath
		if runnable, err = p.binary(); err != nil {
			return err
		}
	} else if !runnable {
		p.warn("%s starts %s, which is not there: the service will be skipped at boot", at, program)
	}
	if err := p.mountUnit(); err != nil {
		return err
	}
	p.note("%s is there already: it is enabled and used as it is", at)
	if own, err := p.handOver(pkg, at, program); err != nil {
		return err
	} else if own != "" {
		at = own
	}
	if err := p.enable(ServiceName, pkg.data); err != nil {
		return err
	}
	if args := slices.DeleteFunc(slices.Clone(p.Args), func(a string) bool { return a == "init" || a == "--boot" }); len(args) > 0 {
		p.warn("%s does not have the settings %q: the next boot has them from %s only (FIRSTHOP_…, see firsthop init --help)", at, args, EnvironmentFile)
	}
	return p.finishSystemd(ctx, at, path.Dir(program), runnable, "the package's "+ServiceName+" ("+at+")")
}

// handOver plans the end of our own unit and copy of the program in favour of
// a package's. The links go first, each replaced in one step, so that there is
// an enabled unit at any moment. A version of the unit that is the
// administrator's (systemctl edit --full) stays, and its path is returned.
func (p *planner) handOver(pkg node, at, program string) (administrators string, err error) {
	own := path.Join(systemDir, ServiceName)
	p.sweep(systemDir)
	n, err := p.t.look(own)
	if err != nil {
		return "", err
	}
	if n.exists && !n.isOurs() {
		p.note("%s hides %s: it is not ours, and used as it is", own, at)
		return own, nil
	}
	for _, dir := range installSection(pkg.data) {
		if err := p.relink(path.Join(systemDir, dir, ServiceName), own, at); err != nil {
			return "", err
		}
	}
	if n.exists {
		p.note("%s is ours and goes, because it hides %s", own, at)
		p.remove(own, "ours, hides "+at, string(n.data))
	}
	if program == BinaryPath {
		return "", nil
	}
	return "", p.dropBinary()
}

// relink plans to lead a link to our unit to the package's.
func (p *planner) relink(link, from, to string) error {
	n, err := p.t.lstat(link)
	if err != nil || !n.isLink() || n.link != from {
		return err
	}
	p.add(Action{Kind: instance.KindLink, Path: link, Old: from, New: to, former: from, run: func(context.Context) error {
		tmp := path.Join(path.Dir(n.at), tempPrefix+path.Base(n.at))
		if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, tmp); err != nil {
			return err
		}
		if err := os.Rename(tmp, n.at); err != nil {
			return err
		}
		return syncDir(path.Dir(n.at))
	}})
	return nil
}

// staysEnabled returns the path of a package's unit that Uninstall leaves
// enabled, because it was not we who enabled it; "" if there is none.
func (p *planner) staysEnabled() (string, error) {
	disabled := slices.ContainsFunc(p.r.Actions, func(a Action) bool { return a.Kind == instance.KindDisable && a.Path == ServiceName })
	pkg, at, err := p.files().findIn(packagePath, ServiceName)
	if err != nil || disabled || at == "" || pkg.isMasked() || len(p.files().links(ServiceName)) == 0 {
		return "", err
	}
	return at, nil
}

// programOf returns the path of the program that a service starts, "" if there
// is none.
func programOf(data []byte) string {
	for _, o := range unitfile.Parse(string(data)) {
		if o.Section != "Service" || o.Key != "ExecStart" {
			continue
		}
		// What may stand before it: systemd.service(5), "Command lines".
		if words := unitfile.Words(o.Value); len(words) > 0 && path.IsAbs(strings.TrimLeft(words[0], "@-:+!|")) {
			return strings.TrimLeft(words[0], "@-:+!|")
		}
	}
	return ""
}
