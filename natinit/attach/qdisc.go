package attach

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/instance"
)

// A clsact qdisc has nothing by which ours could be known: the journal has those that we made, and for which device. An
// index alone doesn't say which device it is, as it is given out again: the entry also has the network namespace, the name
// and the hardware address. A device keeps one of both over a rename, or as a bond that gets another address.
//
// To add or to delete such a qdisc loses packets: the kernel takes a device's queues out of service for some milliseconds
// (net/sched/sch_api.c, qdisc_graft, calls dev_deactivate). So it is made only where there is none, and stays until all of
// firsthop is removed: also when an attach fails, as it will be tried again, or when tcx takes the filters' place.

const (
	qdiscTarget = "clsact_%d" // by index
	qdiscFormer = "netns %d device %s mac %s"
)

func (d *openDevice) qdiscTarget() string { return fmt.Sprintf(qdiscTarget, d.Index) }

func (d *openDevice) mac() string {
	if len(d.attrs.HardwareAddr) == 0 {
		return "-"
	}
	return d.attrs.HardwareAddr.String()
}

// madeClsact reports whether the journal has the clsact qdisc of this device as ours. An entry for another device of the
// same index is removed.
func (d *openDevice) madeClsact() (bool, error) {
	if d.journal == nil {
		return false, nil
	}
	former, ok := d.journal.Former(instance.KindQdisc, d.qdiscTarget())
	if !ok {
		return false, nil
	}
	if d.isFormer(former) {
		return true, nil
	}
	return false, d.journal.Forget(instance.KindQdisc, d.qdiscTarget())
}

// isFormer reports whether an entry is of the qdisc that this device has.
func (d *openDevice) isFormer(former string) bool {
	ns, err := currentNetns()
	if err != nil {
		return false
	}
	var inode uint64
	var name, mac string
	n, err := fmt.Sscanf(former, qdiscFormer, &inode, &name, &mac)
	return n == 3 && err == nil && inode == ns && d.qdisc == qdiscClsact && (name == d.attrs.Name || mac != "-" && mac == d.mac())
}

// ensureClsact makes the qdisc, where there is none, and records before that it is ours.
func (d *openDevice) ensureClsact() error {
	if d.qdisc != "" {
		_, err := d.madeClsact()
		return err
	}
	if d.journal != nil {
		ns, err := currentNetns()
		if err != nil {
			return err
		}
		if err := d.journal.Amend(instance.KindQdisc, d.qdiscTarget(), fmt.Sprintf(qdiscFormer, ns, d.attrs.Name, d.mac())); err != nil {
			return err
		}
	}
	err := netlink.QdiscAdd(clsactOf(d.Index))
	if err == nil {
		d.qdisc = qdiscClsact
		return nil
	}
	if d.journal != nil {
		err = errors.Join(err, d.journal.Forget(instance.KindQdisc, d.qdiscTarget()))
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc to %s: %w", d, err)
	}
	kinds, err := listQdiscs() // somebody else was faster
	d.qdisc = kinds[d.Index]
	return err
}

// cleanup removes the clsact qdisc if we made it and no filter is in it. Somebody who adds one in this very instant
// loses it with the qdisc: the kernel has no way to remove only an empty one.
func (d *openDevice) cleanup() error {
	made, err := d.madeClsact()
	if err != nil || !made {
		return err
	}
	for _, h := range []bpf.Hook{{Attach: ebpf.AttachTCXIngress}, {Attach: ebpf.AttachTCXEgress}} {
		filters, err := d.filters(h)
		if err != nil || len(filters) > 0 {
			return err
		}
	}
	err = netlink.QdiscDel(clsactOf(d.Index))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete clsact qdisc of %s: %w", d, err)
	}
	d.qdisc = ""
	return d.journal.Forget(instance.KindQdisc, d.qdiscTarget())
}

// currentNetns tells the thread's network namespace from others, as long as it lives.
func currentNetns() (inode uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("identify the network namespace: %w", err)
	}
	return st.Ino, nil
}
