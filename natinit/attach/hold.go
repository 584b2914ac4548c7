package attach

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
)

// Held are open handles of what is attached. As long as they are open, nobody
// detaches anything by removing its pin, or the file system that the pin is in.
type Held struct {
	Hooks []Result
	links map[string]link.Link
}

// Hold opens what an attachment has pinned.
func Hold(pins bpf.Pins, hooks []Result) (*Held, error) {
	held := &Held{Hooks: hooks, links: map[string]link.Link{}}
	for _, res := range hooks {
		if res.By != ByLink {
			continue
		}
		h, _ := bpf.HookByName(res.Hook)
		l, info, err := ownLink(filepath.Join(pins.Links(), h.Name), h)
		if err != nil {
			return nil, errors.Join(err, held.Close())
		}
		if l == nil {
			continue
		}
		if info.Program != res.Program {
			l.Close()
			continue
		}
		held.links[h.Name] = l
	}
	return held, nil
}

// Repin pins those links again that have lost their pins, and reports which. What
// is pinned in their place is left alone.
func (held *Held) Repin(pins bpf.Pins) (repinned []string, err error) {
	for _, res := range held.Hooks {
		l, ok := held.links[res.Hook].(interface{ FD() int })
		if !ok {
			continue
		}
		pin := filepath.Join(pins.Links(), res.Hook)
		if _, err := os.Lstat(pin); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if info, err := held.links[res.Hook].Info(); err != nil || info.Cgroup() == nil || info.Cgroup().CgroupId == 0 {
			continue // detached: of no use any more
		}
		if err := errors.Join(bpf.EnsureDir(pins.Dir), bpf.EnsureDir(pins.Links())); err != nil {
			return repinned, err
		}
		if err := repin(l.FD(), pin); err != nil {
			return repinned, err
		}
		repinned = append(repinned, res.Hook)
	}
	return repinned, nil
}

// Close gives the handles back: what has no pin is detached then.
func (held *Held) Close() error {
	if held == nil {
		return nil
	}
	var errs []error
	for _, l := range held.links {
		errs = append(errs, l.Close())
	}
	held.links = nil
	return errors.Join(errs...)
}

// PinOf is the path by which a hook's attachment is pinned.
func (r Result) PinOf(pins bpf.Pins) string {
	if r.By == ByLink {
		return filepath.Join(pins.Links(), r.Hook)
	}
	return filepath.Join(pins.Progs(), r.Hook)
}
