package writer

import "net/netip"

// serviceRange are the addresses that Services are given, as they should be in the table.
type serviceRange struct {
	ranges, others []netip.Prefix
	planned        bool
	err            error // why they are not in the table
}

func (r *serviceRange) pending() bool { return r != nil && !r.planned }

// again has them planned once more: the table was read anew.
func (r *serviceRange) again() {
	if r != nil {
		r.planned = false
	}
}

// assignRange plans the Service range. Where it has no room, what the table has stays: fewer addresses are refused.
func (w *Writer) assignRange() {
	r := w.ranges
	if !r.pending() {
		return
	}
	r.planned = true
	if r.err = w.planner.SetServiceRanges(r.ranges, r.others); r.err != nil {
		w.cfg.Log.Error("addresses of the Service range that no Service has are not refused", "err", r.err)
	}
}
