package bootstrap

import (
	"context"

	"github.com/firsthop/firsthop/units"
)

// ReadUnits says what starts firsthop at boot, and what an install of the
// program binary would change. It changes nothing.
func ReadUnits(ctx context.Context, d Dirs, binary string) (*units.Report, error) {
	rep, err := units.PlanInstall(ctx, units.Config{Root: d.places().hostRoot, StateDir: d.onHost(), BinarySource: binary})
	if err != nil {
		return nil, err
	}
	return &rep, nil
}
