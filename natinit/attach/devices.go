package attach

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/natinit/instance"
)

// What concerns all devices of the network namespace at once.

// ErrOtherNetns says that filters of ours are at devices of another network namespace, where they can't be reached from
// here.
var ErrOtherNetns = errors.New("attached in another network namespace")

// ByName are programs of which nothing is known but the names of their hooks: those are ours that a pin or the journal
// says so of. They can be detached and listed, not attached.
type ByName []bpf.Hook

// AllHooks implements Programs.
func (b ByName) AllHooks() []bpf.Hook { return slices.Clone(b) }

// Hooks implements Programs: none gets a program.
func (b ByName) Hooks() []bpf.Hook { return nil }

// Load implements Programs.
func (b ByName) Load() (map[string]*ebpf.Program, error) {
	return nil, errors.New("these programs can't be loaded")
}

// Inspect implements Programs.
func (b ByName) Inspect(p *ebpf.Program) (Known, error) {
	info, err := p.Info()
	if err != nil {
		return Known{}, fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	return Known{ID: id, Name: info.Name}, nil
}

// DevicePins lists what is pinned for programs of devices.
func DevicePins(pins bpf.Pins, hooks []bpf.Hook) ([]string, error) {
	var paths []string
	for _, dir := range []string{pins.Links(), pins.Progs()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list pins: %w", err)
		}
		for _, e := range entries {
			if _, ok := pinnedIndex(e.Name(), hooks); ok {
				paths = append(paths, filepath.Join(dir, e.Name()))
			}
		}
	}
	return paths, nil
}

// pinnedIndex is the index of the device that a pin is for.
func pinnedIndex(name string, hooks []bpf.Hook) (index int, ok bool) {
	name = strings.TrimSuffix(name, nextSuffix)
	for _, h := range hooks {
		if digits, ok := strings.CutPrefix(name, h.Name+"_"); ok {
			if index, err := strconv.Atoi(digits); err == nil && (Device{Index: index}).pinName(h) == name {
				return index, true
			}
		}
	}
	return 0, false
}

// known are the indexes for which something is pinned or recorded, whether there is such a device or not.
func known(cfg Config) (map[int]bool, error) {
	hooks := cfg.Programs.AllHooks()
	indexes := map[int]bool{}
	if cfg.Pins.Dir != "" {
		pins, err := DevicePins(cfg.Pins, hooks)
		if err != nil {
			return nil, err
		}
		for _, pin := range pins {
			index, _ := pinnedIndex(filepath.Base(pin), hooks)
			indexes[index] = true
		}
	}
	if cfg.Journal == nil {
		return indexes, nil
	}
	for _, e := range cfg.Journal.Entries() {
		var index int
		switch e.Kind {
		case instance.KindDevice:
			pin, _, _, _ := parseEntry(e.Target)
			if index, ok := pinnedIndex(pin, hooks); ok {
				indexes[index] = true
			}
		case instance.KindQdisc:
			if n, err := fmt.Sscanf(e.Target, qdiscTarget, &index); n == 1 && err == nil {
				indexes[index] = true
			}
		}
	}
	return indexes, nil
}

// nothingKnown reports whether no device need be looked at, as nothing at it could be told to be ours.
func nothingKnown(cfg Config, indexes map[int]bool) bool {
	_, nameOnly := cfg.Programs.(ByName)
	return nameOnly && len(indexes) == 0
}

// present are the devices of the network namespace, by index.
func present() (map[int]Device, error) {
	for range dumpTries {
		links, err := netlink.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		devices := map[int]Device{}
		for _, l := range links {
			devices[l.Attrs().Index] = Device{Name: l.Attrs().Name, Index: l.Attrs().Index}
		}
		return devices, nil
	}
	return nil, fmt.Errorf("list devices: %w", netlink.ErrDumpInterrupted)
}

// DetachDevices detaches and unpins everything of ours at all devices of the network namespace, as Detach does for one:
// what is pinned, what cfg.Programs knows, and what the journal has, whose entries are then gone. cfg.Target is not used.
// Devices that are gone are cleaned up after; links are also detached from devices that were moved to another network
// namespace. A clsact qdisc goes if we made it and no filter of others is in it; that loses packets for an instant.
//
// ErrOtherNetns names filters that can't be reached: nothing was changed then.
func DetachDevices(cfg Config) error {
	if err := CheckDetachDevices(cfg); err != nil {
		return err
	}
	indexes, err := known(cfg)
	if err != nil {
		return err
	}
	if nothingKnown(cfg, indexes) {
		return nil
	}
	devices, err := present()
	if err != nil {
		return err
	}
	for index := range devices {
		indexes[index] = true
	}
	if err := privileges.MayDetach(); err != nil {
		return err
	}
	if cfg.qdiscs, err = listQdiscs(); err != nil {
		return err
	}
	var errs []error
	for _, index := range slices.Sorted(maps.Keys(indexes)) {
		d, ok := devices[index]
		if !ok {
			d = Device{Name: fmt.Sprintf("index %d", index), Index: index}
		}
		cfg.Target = d
		errs = append(errs, detachFrom(cfg, true))
	}
	if err := errors.Join(errs...); err != nil || cfg.Journal == nil {
		return err
	}
	if err := cfg.Journal.ForgetIf(instance.KindDevice, func(string) bool { return true }); err != nil {
		return err
	}
	return cfg.Journal.ForgetIf(instance.KindQdisc, func(string) bool { return true })
}

// CheckDetachDevices finds out, without any change, whether DetachDevices can find everything.
func CheckDetachDevices(cfg Config) error {
	if cfg.Pins.Dir != "" {
		indexes, err := known(cfg)
		if err != nil {
			return err
		}
		for index := range indexes {
			if err := checkPins(cfg.Pins, Device{Index: index}, cfg.Programs.AllHooks()); err != nil {
				return ExplainRights(err)
			}
		}
	}
	if cfg.Journal == nil || !cfg.Journal.HasKind(instance.KindDevice) {
		return nil
	}
	here, err := currentNetns()
	if err != nil {
		return err
	}
	var elsewhere []string
	for _, e := range cfg.Journal.Entries() {
		var by, device string
		var ns uint64
		if e.Kind != instance.KindDevice {
			continue
		}
		n, err := fmt.Sscanf(e.Former, deviceFormer, &by, &ns, &device)
		if n == 3 && err == nil && By(by) == ByClsact && ns != here && !isGone(e.Target) {
			elsewhere = append(elsewhere, e.Target+" at "+device)
		}
	}
	if len(elsewhere) > 0 {
		return fmt.Errorf("%s: %w: run this in the network namespace in which firsthop ran (the host's)", strings.Join(elsewhere, ", "), ErrOtherNetns)
	}
	return nil
}

// DetachGone removes what is pinned and recorded for devices that are not there any more, and says for how many there
// was something. Call it at the start: devices go while nobody follows them. cfg.Target is not used.
func DetachGone(cfg Config) (devices int, err error) {
	indexes, err := known(cfg)
	if err != nil || len(indexes) == 0 {
		return 0, err
	}
	there, err := present()
	if err != nil {
		return 0, err
	}
	var errs []error
	for index := range indexes {
		if _, ok := there[index]; ok {
			continue
		}
		devices++
		cfg.Target = Device{Name: fmt.Sprintf("index %d", index), Index: index}
		errs = append(errs, Detach(cfg))
	}
	return devices, errors.Join(errs...)
}

// forgetGone removes what is pinned and recorded for a device that is not there any more. A link may still be attached:
// to the device, if that was moved to another network namespace. Filters are not: they end with such a move.
func forgetGone(cfg Config) error {
	l := &ladder{cfg: cfg}
	var errs []error
	for _, h := range l.reversed() {
		errs = append(errs, l.detachHook(h, time.Now()))
	}
	errs = append(errs, l.detachMoved())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up after %s, which is gone: %w", cfg.Target, err)
	}
	if cfg.Journal == nil {
		return nil
	}
	if err := l.forgetPrograms(); err != nil {
		return err
	}
	return cfg.Journal.Forget(instance.KindQdisc, (&openDevice{Device: cfg.Target.(Device)}).qdiscTarget())
}

// detachMoved detaches links that only the journal knows from a device that was moved to another network namespace.
func (l *ladder) detachMoved() error {
	if l.cfg.Journal == nil {
		return nil
	}
	ours := map[ebpf.ProgramID]bool{}
	for _, e := range l.cfg.Journal.Entries() {
		if e.Kind == instance.KindDevice && l.isOfTarget(e.Target) && !isGone(e.Target) {
			_, id, _, _ := parseEntry(e.Target)
			ours[id] = true
		}
	}
	if len(ours) == 0 {
		return nil
	}
	err := l.cfg.Links.Each(func(_ link.ID, found link.Link) (bool, error) {
		info, err := found.Info()
		if err != nil || info.TCX() == nil || !ours[info.Program] {
			return false, nil // of another kind, or gone by now
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			return false, nil // gone by now
		}
		defer p.Close()
		for _, h := range l.cfg.Programs.AllHooks() {
			if e, err := l.entry(h, p); err == nil && l.cfg.Journal.Has(instance.KindDevice, e) {
				return false, detach(found)
			}
		}
		return false, nil
	})
	if errors.Is(err, objects.ErrNotSupported) {
		return nil
	}
	return err
}

// DeviceState says what of ours is at one device.
type DeviceState struct {
	Device string      `json:"device,omitempty"` // its name; "": there is no such device any more
	Index  int         `json:"index"`
	Hooks  []HookState `json:"hooks,omitempty"`
	// Leftovers are pins of a device that is gone.
	Leftovers []string `json:"leftovers,omitempty"`
	Clsact    bool     `json:"clsact_is_ours,omitempty"` // we made its clsact qdisc
}

// HookState is one program of ours at one hook of a device, and its order.
type HookState struct {
	Place
	By      By             `json:"by"`
	Program ebpf.ProgramID `json:"program_id"`
}

// InspectDevices reads, and changes nothing: what of ours is at all devices of the network namespace, by index. A device
// at which nothing of ours is isn't listed. cfg.Target is not used, but for its TCX.
func InspectDevices(cfg Config) ([]DeviceState, error) {
	indexes, err := known(cfg)
	if err != nil || nothingKnown(cfg, indexes) {
		return nil, err
	}
	devices, err := present()
	if err != nil {
		return nil, err
	}
	if cfg.qdiscs, err = listQdiscs(); err != nil {
		return nil, err
	}
	wanted, _ := cfg.Target.(Device)
	for index := range devices {
		indexes[index] = true
	}
	var out []DeviceState
	for _, index := range slices.Sorted(maps.Keys(indexes)) {
		d, ok := devices[index]
		if !ok {
			st := DeviceState{Index: index}
			for _, pin := range PinPaths(cfg.Pins, Device{Index: index}, cfg.Programs.AllHooks()) {
				if _, err := os.Lstat(pin); cfg.Pins.Dir != "" && err == nil {
					st.Leftovers = append(st.Leftovers, pin)
				}
			}
			out = append(out, st)
			continue
		}
		d.TCX = wanted.TCX
		cfg.Target = d
		st, err := inspectDevice(cfg, d)
		if errors.Is(err, os.ErrNotExist) {
			continue // it went away since
		}
		if err != nil {
			return nil, ExplainRights(err)
		}
		if len(st.Hooks) > 0 || st.Clsact {
			out = append(out, st)
		}
	}
	return out, nil
}

func inspectDevice(cfg Config, d Device) (DeviceState, error) {
	st := DeviceState{Device: d.Name, Index: d.Index}
	l, err := open(cfg)
	if err != nil {
		return st, err
	}
	defer l.close()
	if cfg.Journal != nil {
		former, ok := cfg.Journal.Former(instance.KindQdisc, l.site.(*openDevice).qdiscTarget())
		st.Clsact = ok && l.site.(*openDevice).isFormer(former)
	}
	for _, h := range cfg.Programs.AllHooks() {
		list, err := l.place(h)
		if err != nil {
			if l.site.gone() {
				return st, os.ErrNotExist
			}
			return st, err
		}
		st.Hooks = append(st.Hooks, list...)
	}
	return st, nil
}
