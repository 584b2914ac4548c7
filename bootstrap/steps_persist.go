package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/units"
)

// persist prepares the next boot. What fails here takes nothing from what was
// proven, and the node is served until it boots: so it is a warning, but for
// who asked for this step alone (install).
func (s *stage) persist(ctx context.Context) (outcome, error) {
	if s.settings.persist == PersistOff {
		s.report.AfterReboot = "nothing survives a reboot (--persist off): the pins, the attachment and any mount made here are gone then; run firsthop init again"
		return outcome{result: Skipped, reason: "--persist off"}, nil
	}
	p := &persistence{stage: s, unsaved: s.image && s.found == nil}
	p.addresses()
	p.boot(ctx)
	if err := errors.Join(p.failed...); err != nil && s.onlyPersist {
		s.report.AfterReboot = p.statement
		return outcome{}, err
	}
	s.report.AfterReboot = p.statement
	p.out.reason = strings.TrimPrefix(p.out.reason+"; "+p.statement, "; ")
	for _, err := range p.failed {
		p.out.warnings = append(p.out.warnings, err.Error())
	}
	return p.out, nil
}

// persistence is the preparation of the next boot while it is made.
type persistence struct {
	*stage
	out       outcome
	failed    []error
	statement string // what of this survives a reboot, and by whose doing
	unsaved   bool   // the addresses of this run are not on disk
	units     units.Report
}

func (p *persistence) fail(what string, err error) {
	p.failed = append(p.failed, fmt.Errorf("%s: %w", what, err))
}

func (p *persistence) addresses() {
	if p.found == nil {
		return
	}
	err := p.trustedStateDir()
	if err == nil {
		p.out, err = p.saveAddresses()
	}
	if err != nil {
		p.unsaved = true
		if advice := instance.Advice(err, "--state-dir"); advice != "" {
			err = fmt.Errorf("state directory %s can't be written: %w: %s, or --persist off", p.StateDir, err, advice)
		}
		p.fail("the API server addresses are not saved", err)
	}
}

// trustedStateDir refuses to keep anything where it would not be believed.
func (p *persistence) trustedStateDir() error {
	trust, err := instance.Examine(p.StateDir)
	if err != nil {
		return nil // it is to be made first
	}
	if err := trust.Err(); err != nil {
		return fmt.Errorf("nothing that is kept in the state directory %s would be believed: %w", p.StateDir, err)
	}
	return nil
}

func (p *persistence) boot(ctx context.Context) {
	switch {
	case p.Own():
		p.statement = "will not survive a reboot: this instance has directories of its own (--bpffs, --cgroup), so no boot unit is installed for it; " +
			"its pins and its attachment are gone then; run firsthop init again"
		return
	case p.NoHost != nil:
		p.statement = "will not survive a reboot: the host can't be reached from this container, so nothing is installed there"
		if p.onlyPersist {
			p.fail("nothing is installed on the host", p.NoHost)
		}
		return
	case p.Boot: // its unit is there already, and this run's environment is not what made it
		p.statement = "the boot unit runs this again at the next boot"
		if p.unsaved {
			p.statement += ", and uses what was saved before, or what it finds on the node"
		}
		return
	}
	err := p.trustedStateDir() // the journal of what is installed is there
	var rep units.Report
	if err == nil {
		rep, err = p.installUnits(ctx)
	}
	p.units = rep
	p.out.changes = append(p.out.changes, DescribeActions(rep.Actions)...)
	p.out.warnings = append(p.out.warnings, rep.Warnings...)
	if path, kerr := p.kubeadmAtBoot(); kerr != nil {
		p.out.warnings = append(p.out.warnings, fmt.Sprintf("--kubeadm-config %s is not read again at boot: %v; the addresses that it gives are saved", path, kerr))
	}
	switch {
	case err != nil:
		p.fail("nothing is sure to start firsthop at the next boot", err)
		p.statement = "The Service IP does not survive a reboot: it works again when firsthop init runs again, as its DaemonSet does."
	case p.unsaved && rep.Survives:
		p.statement = "After a reboot the boot unit runs firsthop init, but without the addresses of this run: it uses what was saved before, or what it finds on the node."
	default:
		p.statement = rep.Statement
		if rep.Init.Kind == units.NoInit && p.onlyPersist {
			p.fail("nothing is installed", errors.New(rep.Statement))
		}
	}
	if p.image {
		p.statement = fmt.Sprintf("Installed in this root alone, which is an image (for the machine outside of it give --root %s). When it boots: %s", p.outside, p.statement)
	}
}
