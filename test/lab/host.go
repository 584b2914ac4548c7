package lab

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Host is a further machine of a lab: a network namespace without a link to any other. The test makes it a router, a
// switch, or a client outside. It goes with the lab.
type Host struct {
	Name  string // of the network namespace in `ip netns`
	Netns string

	space
	nl *netlink.Handle
}

// AddHost makes a host. The name has at most 12 letters.
func (l *Lab) AddHost(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("add a host to a lab that is closed")
	}
	h := &Host{Name: l.Name + "-" + name, space: space{netns.None()}}
	h.Netns = netnsPath(h.Name)
	l.hosts = append(l.hosts, h)
	var err error
	if h.ns, h.nl, err = createNetns(h.Name); err != nil {
		return nil, fmt.Errorf("create host %s: %w", name, err)
	}
	return h, nil
}

// Link runs fn with netlink of the host's network namespace.
func (h *Host) Link(fn func(nl *netlink.Handle) error) error { return fn(h.nl) }

// Sysctl sets a sysctl, named as for Lab.Sysctl, inside the host's network namespace.
func (h *Host) Sysctl(name, value string) error { return sysctlIn(h.ns, name, value) }

// close releases what AddHost made, however far it came.
func (h *Host) close() error {
	var errs []error
	if h.nl != nil {
		h.nl.Close()
	}
	if h.ns.IsOpen() {
		errs = append(errs, h.ns.Close())
	}
	return errors.Join(append(errs, deleteNetns(filepath.Base(h.Netns)))...)
}
