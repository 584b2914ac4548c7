package writer

import (
	"context"
	"net/netip"
	"slices"
)

// serviceRange are the addresses that Services are given, as they should be in the table.
type serviceRange struct {
	ranges, others []netip.Prefix
	out            []netip.Prefix // of Services that are out: somebody else may serve them
	planned        bool
	err            error // why they are not in the table
}

// replan has them planned again: the table was read again, or has capacity.
func (r *serviceRange) replan() {
	if r != nil {
		r.planned = false
	}
}

// SetServiceRange says which addresses Services are given: connections to those
// that none has are refused, but not to others, nor to those of Services that are
// out. Nothing is written yet. Before the first call what the table has stays.
func (w *Writer) SetServiceRange(ranges, others []netip.Prefix) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.ranges; old != nil && slices.Equal(old.ranges, ranges) && slices.Equal(old.others, others) {
		return
	}
	w.ranges = &serviceRange{ranges: ranges, others: others}
}

// ClearServiceRange ends that: nobody will know of new Services from now on. It
// writes, but not before the first Flush.
func (w *Writer) ClearServiceRange(ctx context.Context) error {
	if !w.adopted() {
		return nil
	}
	w.SetServiceRange(nil, nil)
	return w.Flush(ctx)
}

// planRange plans the Service range. Where it finds no capacity, what the table has stays: fewer addresses are refused.
func (w *Writer) planRange() {
	r := w.ranges
	if r == nil {
		return
	}
	if out := w.outOf(r.ranges); !slices.Equal(out, r.out) {
		r.out, r.planned = out, false
	}
	if r.planned {
		return
	}
	r.planned = true
	former := r.err
	r.err = w.planner.SetServiceRanges(r.ranges, slices.Concat(r.others, r.out))
	if r.err != nil && (former == nil || former.Error() != r.err.Error()) { // it is tried again whenever something goes
		w.cfg.Log.Error("addresses of the Service range that no Service has are not refused", "err", r.err)
	}
}

// outOf are the addresses within ranges of Services that are out, sorted.
func (w *Writer) outOf(ranges []netip.Prefix) []netip.Prefix {
	if w.out == 0 || len(ranges) == 0 {
		return nil
	}
	var out []netip.Prefix
	for _, p := range w.ports {
		if p.err == nil {
			continue
		}
		for _, k := range p.svc.Frontends {
			a := k.Addr.Addr()
			if slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
