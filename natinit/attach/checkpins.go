package attach

import (
	"errors"
	"path/filepath"

	"github.com/firsthop/firsthop/bpf"
)

// CheckPins says what Attach would stumble over at the pins of its hooks, and
// changes nothing: its error matches bpf.ErrForeign.
func CheckPins(pins bpf.Pins, hooks []bpf.Hook) error {
	var errs []error
	for _, h := range hooks {
		l, _, err := ownLink(filepath.Join(pins.Links(), h.Name), h)
		if l != nil {
			l.Close()
		}
		p, progErr := ownProg(filepath.Join(pins.Progs(), h.Name), h)
		if p != nil {
			p.Close()
		}
		errs = append(errs, err, progErr)
	}
	return errors.Join(errs...)
}
