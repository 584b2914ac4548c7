package attach

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
	var candidates []string
	for _, dir := range []string{pins.Links(), pins.Progs()} {
		for _, h := range bpf.Hooks() {
			pin := filepath.Join(dir, h.Name)
			candidates = append(candidates, pin, pin+nextSuffix)
		}
	}
	for _, name := range bpf.MapNames() {
		candidates = append(candidates, pins.Map(name))
	}
	var out []string
	for _, path := range candidates {
		_, err := os.Lstat(path)
		if err == nil {
			out = append(out, path)
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list pins: %w", err)
		}
	}
	return out, nil
}

// Remove detaches the load balancer and unpins everything of an instance, the
// way there before the way back before the table. cgroup is where programs may
// be attached without a link. It returns once the kernel lists nothing of ours
// any more: below 6.1 a link detaches a little after it is unpinned.
//
// What stands at one of our pins and isn't ours stays, and is an error that
// matches bpf.ErrForeign; a table of another owner keeps everything else, too.
func Remove(pins bpf.Pins, cgroup string) error {
	if err := MayRemove(); err != nil {
		return err
	}
	maps, err := bpf.OpenMaps(pins, false)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return ExplainRights(err)
	}
	if maps != nil {
		defer maps.Close()
	}
	var dir *os.File
	if cgroup != "" {
		dir, err = os.Open(cgroup)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a cgroup that is gone has nothing attached
			return fmt.Errorf("open cgroup: %w", err)
		}
		if err == nil {
			defer dir.Close()
		}
	}
	var errs []error
	hooks := bpf.Hooks()
	for i := len(hooks) - 1; i >= 0; i-- {
		errs = append(errs, removeHook(pins, maps, dir, hooks[i]))
	}
	if err := errors.Join(errs...); err != nil {
		return ExplainRights(err) // the table stays while something may read it
	}
	err = bpf.RemoveMaps(pins)
	bpf.RemoveEmptyDirs(pins)
	return err
}

// removeHook takes away what is at one hook. maps is nil where the table is
// not whole, cgroup where it is gone.
func removeHook(pins bpf.Pins, maps *bpf.Maps, cgroup *os.File, h bpf.Hook) error {
	pin := filepath.Join(pins.Links(), h.Name)
	progPin := filepath.Join(pins.Progs(), h.Name)
	errs := []error{removeLink(pin, h), removeLink(pin+nextSuffix, h)}
	if maps != nil && cgroup != nil {
		if err := detachOurs(maps, cgroup, h); err != nil {
			return errors.Join(append(errs, err)...) // the pins of programs that are still attached stay
		}
	}
	return errors.Join(append(errs, removeProg(progPin, h, cgroup), removeProg(progPin+nextSuffix, h, cgroup))...)
}

// detachOurs detaches the programs that use our table.
func detachOurs(maps *bpf.Maps, dir *os.File, h bpf.Hook) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		left := 0
		err := Each(dir, h, func(p *ebpf.Program) error {
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
			return fmt.Errorf("%d programs are still attached at %s of %s", left, h.Name, dir.Name())
		}
	}
}
