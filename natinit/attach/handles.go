package attach

import (
	"errors"
	"os"

	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
)

// Handles are open handles of what is attached. As long as they are open, nobody
// detaches anything by removing its pin, or the file system that the pin is in.
type Handles struct {
	Hooks []Result
	links map[string]link.Link
}

// OpenHandles opens what an attachment has pinned.
func OpenHandles(pins bpf.Pins, hooks []Result) (*Handles, error) {
	handles := &Handles{Hooks: hooks, links: map[string]link.Link{}}
	for _, res := range hooks {
		if !res.By.isLink() {
			continue
		}
		l, info, err := ownLink(res.PinOf(pins), res.at.Target, res.at.Hook)
		if err != nil {
			return nil, errors.Join(err, handles.Close())
		}
		switch {
		case l == nil:
		case info.Program != res.Program:
			l.Close()
		default:
			handles.links[res.Hook] = l
		}
	}
	return handles, nil
}

// Repin pins those links again that have lost their pins, and reports which. What
// is pinned in their place is left alone.
func (handles *Handles) Repin(pins bpf.Pins) (repinned []string, err error) {
	for _, res := range handles.Hooks {
		l, ok := handles.links[res.Hook]
		if !ok {
			continue
		}
		pin := res.PinOf(pins)
		if _, err := os.Lstat(pin); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		info, err := l.Info()
		if err != nil {
			continue
		}
		if _, here, _ := res.at.Target.linked(res.at.Hook, info); !here {
			continue // detached: of no use any more
		}
		if err := errors.Join(bpf.EnsureDir(pins.Dir), bpf.EnsureDir(pins.Links())); err != nil {
			return repinned, err
		}
		if err := repin(l, pin); err != nil {
			return repinned, err
		}
		repinned = append(repinned, res.Hook)
	}
	return repinned, nil
}

// Close closes the handles: what has no pin is detached then.
func (handles *Handles) Close() error {
	if handles == nil {
		return nil
	}
	var errs []error
	for _, l := range handles.links {
		errs = append(errs, l.Close())
	}
	handles.links = nil
	return errors.Join(errs...)
}
