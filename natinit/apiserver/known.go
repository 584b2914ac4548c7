package apiserver

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Known are the last known good addresses, as saved on disk.
type Known struct {
	Services  []netip.AddrPort
	Endpoints []KnownEndpoint
	// Source says who found them, for people.
	Source string
	// ServicesCertainty and EndpointsCertainty say how well the two are known.
	ServicesCertainty, EndpointsCertainty Certainty
	// CA holds the CA certificates (PEM) of the cluster that they are of, nil
	// if unknown.
	CA []byte
	// Machine is the one that they were saved on.
	Machine Machine
	// Retract is set when what the operator once gave is given no more, so
	// that the API's own answer may replace it. It is not saved.
	Retract bool
	// SavedAt is when they were written, by the wall clock of the node.
	SavedAt time.Time
}

// KnownEndpoint is an endpoint and when it last answered.
type KnownEndpoint struct {
	Endpoint
	// LastLive is zero if it never answered.
	LastLive time.Time
}

// Age is how long ago the addresses were saved. A clock that has gone
// backwards gives 0.
func (k *Known) Age(now time.Time) time.Duration { return max(0, now.Sub(k.SavedAt)) }

// sameAddresses compares what matters, how well it is known included: a newer LastLive, another source or
// another order (live ones first) alone is no reason to write.
func (k *Known) sameAddresses(o *Known) bool {
	return k.ServicesCertainty == o.ServicesCertainty && k.EndpointsCertainty == o.EndpointsCertainty && k.Machine == o.Machine &&
		slices.Equal(keyFingerprints(k.CA), keyFingerprints(o.CA)) &&
		sameSet(k.Services, o.Services, func(s netip.AddrPort) netip.AddrPort { return s }) &&
		sameSet(k.Endpoints, o.Endpoints, func(e KnownEndpoint) Endpoint { return e.Endpoint })
}

func sameSet[T any, K comparable](a, b []T, key func(T) K) bool {
	set := make(map[K]bool, len(a))
	for _, v := range a {
		set[key(v)] = true
	}
	other := make(map[K]bool, len(b))
	for _, v := range b {
		if !set[key(v)] {
			return false
		}
		other[key(v)] = true
	}
	return len(other) == len(set)
}

// Foreign says why these addresses must not be used on a machine of a
// cluster, "" if nothing speaks against it. What is not known of either side
// does not.
func (k *Known) Foreign(m Machine, t *Trust) string {
	if why := m.differs(k.Machine); why != "" {
		return "they were saved on another machine: " + why
	}
	if t.Known() && len(k.CA) > 0 && !SameCA(k.CA, t.CA) {
		return "they are of another cluster: its CA is another"
	}
	return ""
}

// over gives what is to be saved where old is saved already: a part that is
// known better stays.
func (k *Known) over(old *Known) *Known {
	n := *k
	n.Machine = Machine{ID: cmp.Or(n.Machine.ID, old.Machine.ID), Product: cmp.Or(n.Machine.Product, old.Machine.Product)}
	if len(n.CA) == 0 {
		n.CA = old.CA
	}
	stays := func(was, is Certainty) bool { return was > is && !(k.Retract && is == Said) }
	if stays(old.ServicesCertainty, k.ServicesCertainty) {
		n.Services, n.ServicesCertainty = old.Services, old.ServicesCertainty
	}
	if stays(old.EndpointsCertainty, k.EndpointsCertainty) {
		n.Endpoints, n.EndpointsCertainty, n.Source = slices.Clone(old.Endpoints), old.EndpointsCertainty, old.Source
		for _, e := range k.Endpoints {
			i := slices.IndexFunc(n.Endpoints, func(o KnownEndpoint) bool { return o.Endpoint == e.Endpoint })
			switch {
			case i >= 0 && e.LastLive.After(n.Endpoints[i].LastLive):
				n.Endpoints[i].LastLive = e.LastLive
			case i < 0 && old.EndpointsCertainty != Given && len(n.Endpoints) < MaxEndpoints:
				n.Endpoints = append(n.Endpoints, e)
			}
		}
	}
	return &n
}
