package natinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Pinned lists everything that Remove would remove, in its order.
func Pinned(pins bpf.Pins) ([]string, error) {
	var out []string
	for _, dir := range []string{pins.Links(), pins.Progs(), pins.Maps()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list pins: %w", err)
		}
		for _, e := range entries {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// Remove detaches the load balancer and unpins everything of an instance, the
// way there before the way back before the table. cgroup is where programs may
// be attached without a link. It returns once the kernel lists nothing of ours
// any more: below 6.1 a link detaches a little after it is unpinned.
func Remove(pins bpf.Pins, cgroup string) error {
	maps, err := bpf.OpenMaps(pins, false)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, bpf.ErrForeign) {
		return err
	}
	if maps != nil {
		defer maps.Close()
	}
	var errs []error
	hooks := bpf.Hooks()
	for i := len(hooks) - 1; i >= 0; i-- {
		errs = append(errs, removeHook(pins, maps, cgroup, hooks[i]))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the table stays while something may read it
	}
	for _, name := range bpf.MapNames() {
		errs = append(errs, removePin(pins.Map(name)))
	}
	bpf.RemoveEmptyDirs(pins)
	return errors.Join(errs...)
}

func removeHook(pins bpf.Pins, maps *bpf.Maps, cgroup string, h bpf.Hook) error {
	pin := filepath.Join(pins.Links(), h.Name)
	errs := []error{removeLink(pin), removePin(pin + nextSuffix)}
	if maps != nil && cgroup != "" {
		errs = append(errs, detachOurs(maps, cgroup, h))
	}
	progPin := filepath.Join(pins.Progs(), h.Name)
	errs = append(errs, removePin(progPin), removePin(progPin+nextSuffix))
	return errors.Join(errs...)
}

func detachOurs(maps *bpf.Maps, cgroup string, h bpf.Hook) error {
	dir, err := os.Open(cgroup)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a cgroup that is gone has nothing attached
	}
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		left := 0
		err := eachAttached(dir, h, func(p *ebpf.Program) error {
			l, err := bpf.Inspect(p, maps)
			if err != nil || !l.Ours {
				return err
			}
			left++
			return detachProg(dir, h, p)
		})
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d programs are still attached at %s of %s", left, h.Name, cgroup)
		}
	}
}
