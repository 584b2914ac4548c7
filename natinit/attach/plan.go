package attach

import (
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Plan says what Attach would do, and changes nothing. cfg.Maps may be
// nil where there is no table yet: then every hook gets its program. Program is
// the one that is there now.
func Plan(cfg Config) ([]Result, error) {
	dir, err := os.Open(cfg.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	wanted := cfg.Balancer.Hooks(cfg.Features)
	var out []Result
	for _, h := range bpf.Hooks() {
		res := Result{Hook: h.Name, Change: Added}
		needed := slices.ContainsFunc(wanted, func(w bpf.Hook) bool { return w.Name == h.Name })
		err := Each(dir, h, func(p *ebpf.Program) error {
			l, err := bpf.Inspect(p, cfg.Maps)
			if err != nil || !l.Ours {
				return err
			}
			res.Program, res.Change = l.ID, Changed
			if cfg.Balancer.Current(l, cfg.Maps, cfg.Features) {
				res.Change = Kept
			}
			if !needed {
				res.Change = Removed
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if needed || res.Change == Removed {
			out = append(out, res)
		}
	}
	return out, nil
}
