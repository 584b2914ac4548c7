package uninstall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
)

// ErrWouldCutOff says that an uninstall would leave the Service addresses
// without anybody who serves them.
var ErrWouldCutOff = errors.New("nothing else serves the Service addresses")

// Config says which instance is to go.
type Config struct {
	mounts.Dirs
	Force       bool     // also when nothing else serves the Service addresses, or this node needs them to start
	DryRun      bool     // only list
	Forbid      []string // features of the kernel to be treated as absent
	LockTimeout time.Duration
	Log         *slog.Logger
}

// Removal is one thing that an uninstall removes.
type Removal struct {
	Kind   string `json:"kind"` // unit, setting, program, qdisc, pin, mount, file, directory, label, condition
	Target string `json:"target"`
}

// Run undoes everything that this instance changed on the host, and
// nothing else: what is removed was pinned by us, carries our mark, or is noted
// in the list of changes. It returns what it removed, or with DryRun what it
// would. Killed half way, the next call does the rest.
func Run(ctx context.Context, cfg Config) ([]Removal, error) {
	u := &uninstaller{Config: cfg, Places: cfg.Dirs.Places(), left: map[string]bool{}, unreadable: map[string]bool{}}
	if u.Log == nil {
		u.Log = slog.New(slog.DiscardHandler)
	}
	if err := u.RefuseChroot("; in the image, systemctl disable firsthop-init.service and remove its file, /opt/firsthop and /var/lib/firsthop"); err != nil {
		return nil, err
	}
	if err := u.look(ctx); err != nil {
		return nil, err
	}
	if len(u.removals) == 0 {
		return u.removals, nil
	}
	// Before anything is touched, the lock included; a dry run refuses what the real one would.
	if err := u.strands(ctx); err != nil {
		return nil, err
	}
	if err := instance.RuntimeAbsent(u.RunDir); err != nil {
		return nil, stopFirst(err)
	}
	if u.bpffs.Err() == nil { // of one with another run directory
		if err := instance.TableFree(bpf.PinsBelow(u.bpffs.Path).Dir); err != nil {
			return nil, stopFirst(err)
		}
	}
	if err := u.mayDetach(); err != nil {
		return nil, err
	}
	if err := u.refuse(ctx); err != nil {
		return nil, err
	}
	u.ran = u.ranHere()
	if u.DryRun {
		return u.removals, u.find(ctx, true)
	}
	if err := u.locked(ctx); err != nil {
		return nil, err
	}
	return u.removals, u.undo(ctx, true)
}

func stopFirst(err error) error {
	if !errors.Is(err, instance.ErrRuntime) {
		return err
	}
	return fmt.Errorf("%w: it would bring back what is removed: stop it first (delete the DaemonSet, or systemctl stop firsthop)", err)
}

type uninstaller struct {
	Config
	mounts.Places
	bpffs      mounts.BPFFS
	cgroup     mounts.Cgroup2
	tableLock  *instance.Lock
	lock       *instance.Lock
	volatile   *instance.Journal
	durable    *instance.Journal
	unreadable map[string]bool  // directories whose journal could not be read at all: it is kept as evidence
	servers    []netip.AddrPort // API servers, for what is to be said to them in the end
	vips       []diagnose.TableService
	removals   []Removal
	left       map[string]bool // mounts that turned out to be in use
	keep       []string        // settings of the kernel that are not put back
	ran        bool            // a runtime was at work since the last boot
}

func (u *uninstaller) add(kind, target string) {
	u.removals = append(u.removals, Removal{Kind: kind, Target: target})
}

// look finds everything that is to go.
func (u *uninstaller) look(ctx context.Context) error {
	u.vips, u.removals = nil, []Removal{}
	var err error
	if u.volatile, err = u.openJournal(u.RunDir, false); err != nil {
		return err
	}
	if u.durable, err = u.openJournal(u.StateDir, true); err != nil {
		return err
	}
	if u.bpffs, err = mounts.FindBPFFS(u.ForBPFFS()); err != nil {
		return err
	}
	if u.cgroup, err = mounts.FindCgroup2(u.ForCgroup()); err != nil {
		return err
	}
	if err := u.sameInstance(); err != nil {
		return err
	}
	return u.find(ctx, false)
}

// openJournal reads a journal. A damaged one is set aside, once the instance is
// locked: what can be recovered of it is undone.
func (u *uninstaller) openJournal(dir string, durable bool) (*instance.Journal, error) {
	if u.lock == nil {
		j, err := instance.OpenJournal(dir, durable)
		switch {
		case errors.Is(err, instance.ErrDamagedJournal):
			err = nil
		case errors.Is(err, instance.ErrUntrusted):
			j, err = instance.NewJournal(dir, durable), nil
		}
		return j, err
	}
	j, warning, err := instance.RecoverJournal(dir, durable)
	if warning != "" {
		u.Log.Warn(warning)
		if len(j.Entries()) == 0 {
			u.unreadable[dir] = true
		}
	}
	return j, err
}

// sameInstance refuses what would forget half of an instance: a list of changes
// that belongs to another bpffs, or a bpffs that can't be seen for what covers it.
func (u *uninstaller) sameInstance() error {
	cgroupMount := filepath.Join(u.OnHost(u.RunDir), "cgroup")
	for _, e := range u.volatile.Entries() {
		if e.Kind == instance.KindMount && e.Target != u.bpffs.HostPath && e.Target != cgroupMount {
			return fmt.Errorf("%s lists a mount at %s, but the bpffs here is %s: this run directory belongs to an instance with --bpffs %s",
				filepath.Join(u.RunDir, instance.JournalName), e.Target, u.bpffs.HostPath, e.Target)
		}
	}
	err := u.bpffs.Err()
	if err == nil || errors.Is(err, mounts.ErrAbsent) || errors.Is(err, mounts.ErrNoDirectory) || len(u.volatile.Entries()) == 0 {
		return nil
	}
	return fmt.Errorf("%w: what is pinned there can't be reached: repair that first", err)
}

// mayDetach refuses a removal that could not be completed, before anything is touched.
func (u *uninstaller) mayDetach() error {
	kinds := []string{"program", "qdisc", "pin", "mount"}
	if !slices.ContainsFunc(u.removals, func(r Removal) bool { return slices.Contains(kinds, r.Kind) }) {
		return nil
	}
	return privileges.MayDetach()
}

// refuse keeps a node from being cut off from its control plane.
func (u *uninstaller) refuse(ctx context.Context) error {
	if u.Force || len(u.vips) == 0 {
		return nil
	}
	p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: u.HostRoot, Proc: u.Proc, AnyFrontend: true})
	if err != nil {
		return err
	}
	if u.servedBy(p) {
		return nil
	}
	var frontends []string
	for _, svc := range u.vips {
		frontends = append(frontends, svc.Frontends...)
	}
	return fmt.Errorf("%w (%s): after an uninstall no connection to %s gets through: start what is to serve them first, or use --force",
		ErrWouldCutOff, p.Summary(), diagnose.Few(frontends))
}

// servedBy reports whether rules of kube-proxy's surely serve the API service,
// and what else the init stage was asked to serve. Whether a process bears
// kube-proxy's name proves nothing.
func (u *uninstaller) servedBy(p kubeproxy.Presence) bool {
	last, _ := bootstrap.LoadReport(u.RunDir)
	return servedByRules(p.Serves, u.vips, diagnose.APIAddrs(last, u.StateDir))
}

// servedByRules is servedBy for a table in which the API service has the addresses api, as far as is known. Where none of
// those is in the table, nothing tells which of its Services is the API service: rules have to serve all.
func servedByRules(serves func(netip.AddrPort) (served, sure bool), table []diagnose.TableService, api []netip.AddrPort) bool {
	known := slices.ContainsFunc(table, func(svc diagnose.TableService) bool {
		return slices.ContainsFunc(diagnose.TCPFrontends(svc), func(a netip.AddrPort) bool { return slices.Contains(api, a) })
	})
	for _, svc := range table {
		for _, a := range diagnose.TCPFrontends(svc) {
			if known && svc.Owner != natinit.OwnerInit && !slices.Contains(api, a) {
				continue // the runtime's: kube-proxy serves them as it serves the API service
			}
			if served, sure := serves(a); !served || !sure {
				return false
			}
		}
	}
	return true
}
