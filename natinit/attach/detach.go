package attach

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
)

// ErrStillAttached says that a program of ours stays attached until the next
// reboot: by a link without a pin, which a kernel that does not list links
// (below 5.8) gives nobody a handle of.
var ErrStillAttached = errors.New("still attached until the next reboot")

// detachTime is what a link may take to detach after its last handle is closed: below 6.1 that is a little later.
const detachTime = 5 * time.Second

// Detach detaches and unpins everything of ours at a target: what is pinned, what cfg.Programs knows, and what the
// journal has and neither could know, as its pins and maps are gone from sight. The journal then has none of it. Detach
// returns once the kernel lists nothing of ours any more.
//
// What is at one of our pins and isn't ours stays, and is an error that matches bpf.ErrForeign. ErrStillAttached names
// what could not be detached; all else is.
//
// A clsact qdisc that we made stays: its removal loses packets. See DetachDevices.
func Detach(cfg Config) error { return detachFrom(cfg, false) }

// detachFrom is Detach; for good with what was made to attach.
func detachFrom(cfg Config, forGood bool) error {
	if err := privileges.MayDetach(); err != nil {
		return err
	}
	l, err := open(cfg)
	_, isDevice := cfg.Target.(Device)
	switch {
	case err == nil:
	case !errors.Is(err, os.ErrNotExist):
		return err
	case isDevice:
		return ExplainRights(forgetGone(cfg))
	default: // a target that is gone has nothing attached
		l = &ladder{cfg: cfg}
	}
	defer l.close()
	err = l.detachTarget()
	if err == nil && forGood {
		err = l.site.cleanup()
	}
	if isDevice && l.site.gone() {
		err = forgetGone(cfg)
	}
	return ExplainRights(err)
}

func (l *ladder) detachTarget() error {
	deadline := time.Now().Add(detachTime)
	var errs, left []error
	for _, h := range l.reversed() {
		err := l.detachHook(h, deadline)
		if errors.Is(err, ErrStillAttached) {
			left, err = append(left, err), nil
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if l.site != nil {
		left = append(left, l.forgetPrograms())
	}
	return errors.Join(left...)
}

// CheckDetach finds out, without any change, whether Detach can find everything. Call
// it before anything else of an instance is removed: what can't be done must not
// end half-way.
func CheckDetach(cfg Config) error {
	if cfg.Pins.Dir != "" {
		if err := checkPins(cfg.Pins, cfg.Target, cfg.Programs.AllHooks()); err != nil {
			return err
		}
	}
	l, err := open(cfg)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.close()
	var errs []error
	for _, h := range cfg.Programs.AllHooks() {
		found, _, err := l.orphanLink(h)
		if found != nil {
			found.Close()
		}
		errs = append(errs, err, l.each(h, nil, func(p *ebpf.Program) error {
			_, err := l.orphan(h, p)
			return err
		}))
	}
	return ExplainRights(errors.Join(errs...))
}

// detachHook detaches and unpins what is at one hook.
func (l *ladder) detachHook(h bpf.Hook, deadline time.Time) error {
	var errs []error
	pinned := l.cfg.Pins.Dir != ""
	if pinned {
		pin := l.linkPin(h)
		errs = append(errs, removeLink(pin, l.cfg.Target, h), removeLink(pin+nextSuffix, l.cfg.Target, h))
	}
	var left error
	if l.site != nil {
		err := l.detachAll(h, deadline)
		if errors.Is(err, ErrStillAttached) {
			left, err = err, nil
		}
		if err != nil {
			return errors.Join(append(errs, err)...) // the pins of programs that are still attached stay
		}
	}
	if pinned {
		pin := l.progPin(h)
		errs = append(errs, removeProg(pin, h, l.site), removeProg(pin+nextSuffix, h, l.site))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return left
}

// detachAll detaches the programs at a hook that are ours, and those that were.
func (l *ladder) detachAll(h bpf.Hook, deadline time.Time) error {
	found, _, err := l.orphanLink(h)
	if found != nil {
		err = errors.Join(err, detach(found), found.Close()) // below 5.9 the last handle is what keeps it attached
	}
	if err != nil {
		return err
	}
	for pass := 0; ; pass++ {
		var ours, orphans []string
		err := l.each(h, nil, func(p *ebpf.Program) error {
			known, err := l.cfg.Programs.Inspect(p)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("program %d at %s of %s", known.ID, h.Name, l.cfg.Target)
			orphan, err := l.orphan(h, p)
			switch {
			case err != nil:
				return err
			case known.Ours:
				ours = append(ours, text)
			case orphan:
				orphans = append(orphans, text)
			default:
				return nil
			}
			return l.site.detach(h, p)
		})
		if err != nil || len(ours)+len(orphans) == 0 {
			return err
		}
		if pass > 0 && time.Now().After(deadline) {
			if len(ours) > 0 {
				return fmt.Errorf("cannot detach %s", strings.Join(append(ours, orphans...), ", "))
			}
			return fmt.Errorf("%s is %w: its link has no pin, and this kernel does not list links (Linux 5.8)", strings.Join(orphans, ", "), ErrStillAttached)
		}
		if pass > 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// ExplainRights says what is lacking where the kernel only says EPERM.
func ExplainRights(err error) error {
	if !errors.Is(err, unix.EPERM) || errors.Is(err, ErrConflict) {
		return err
	}
	return fmt.Errorf("%w: %s", err, privileges.AsRoot)
}
