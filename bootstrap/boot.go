package bootstrap

import (
	"context"

	"github.com/firsthop/firsthop/units"
)

// ReadUnits says what starts firsthop at boot, and what an install of the
// program binary would change. It changes nothing.
func ReadUnits(ctx context.Context, d Dirs, binary string) (*units.Report, error) {
	p := d.places()
	if p.noHost != nil {
		return nil, p.noHost
	}
	rep, err := units.PlanInstall(ctx, units.Config{Root: p.hostRoot, StateDir: p.onHost(p.stateDir), BinarySource: binary})
	if err != nil {
		return nil, err
	}
	return &rep, nil
}
