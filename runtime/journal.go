package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/firsthop/firsthop/natinit/instance"
)

// What the runtime changes on the host is noted where uninstall and the init
// stage look for it: in the instance's journals, under the instance's lock.

// withJournal takes the instance's lock, creating the run directory where it is
// gone, and calls do with the journal of what a reboot undoes; nil where that
// cannot be used, which is logged: what serves traffic does not wait for it.
func (c *Config) withJournal(ctx context.Context, do func(*instance.Journal) error) (err error) {
	lock, made, err := instance.MakeAndAcquire(ctx, c.RunDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	j, warning, err := instance.RecoverJournal(c.RunDir, false)
	if warning != "" {
		c.Log.Warn("the journal was damaged", "warning", warning)
	}
	if err != nil {
		c.Log.Warn("changes are not noted for uninstall", "err", err)
		return do(nil)
	}
	for _, dir := range made {
		if err := j.Record(instance.KindMkdir, c.OnHost(dir), ""); err != nil {
			return err
		}
	}
	return do(j)
}

// recordSaved notes a file of the state directory, before it is written.
func (c *Config) recordSaved(kind instance.Kind, target, former string) error {
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	err := c.withJournal(ctx, func(outer *instance.Journal) error {
		j, warning, err := instance.RecoverJournal(c.StateDir, true)
		if warning != "" {
			c.Log.Warn("the journal was damaged", "warning", warning)
		}
		if err != nil {
			return err
		}
		j.SetOuter(outer)
		return j.Record(kind, c.OnHost(target), former)
	})
	if err != nil {
		return fmt.Errorf("note %s: %w", target, err)
	}
	return nil
}
