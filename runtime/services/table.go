package services

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Table is what all Services ask of this node's table. It is given every
// object that comes, changes or goes, and returns what that changes, at the cost
// of the Service that the object belongs to. It keeps the objects that it is
// given, and changes none. Not safe for concurrent use.
//
// A frontend that several Services claim belongs to one of them: to the one
// whose cluster IP it is, which the API server gave to it alone, while external
// IPs are whatever the owner of a Service writes (CVE-2020-8554); then to the
// older one, then to the first by namespace and name. The others have the rest
// of their frontends, and it when the winner goes. Frontends at reserved addresses
// (SetReserved) belong to nobody but the API service.
type Table struct {
	node    Node
	entries map[types.NamespacedName]*entry
	owners  map[types.NamespacedName]types.NamespacedName // of slices, by their label
	claims  claims
	dirty   map[*entry]bool // whose wanted Ports may have changed
	held    map[*entry]bool // that wait for their slices; nil: none has to, see Hold

	nodeAddrs map[netip.Addr]int         // by how many nodes have them
	atNode    map[string]map[*entry]bool // that have asked for the addresses of a node
}

// entry is a Service, or slices that wait for one.
type entry struct {
	name     types.NamespacedName
	svc      *corev1.Service              // nil: none
	slices   []*discoveryv1.EndpointSlice // by name
	asked    []Port                       // by the Service, all its frontends in it
	problems []Problem
	nodes    []string  // whose addresses were asked for
	wanted   []Port    // asked, without the frontends that others have
	reported []Problem // problems, and the frontends that others have
}

// Change is what a change of an object does to one Service. Its lists are
// shared: don't change them.
type Change struct {
	Service  types.NamespacedName
	Before   []Port    // what was wanted; none: nothing
	After    []Port    // what is wanted now; none: nothing
	Problems []Problem // all that there are now. A Change may be of them only.
}

// NewTable makes a table without Services for a node.
func NewTable(node Node) *Table {
	t := &Table{
		node:      node.normal(),
		entries:   map[types.NamespacedName]*entry{},
		owners:    map[types.NamespacedName]types.NamespacedName{},
		claims:    newClaims(),
		dirty:     map[*entry]bool{},
		nodeAddrs: map[netip.Addr]int{},
		atNode:    map[string]map[*entry]bool{},
	}
	t.node.Nodes = map[string][]netip.Addr{}
	t.claims.nodeAddrs = t.nodeAddrs
	return t
}

// Hold makes Services wait for their slices until Release: while lists come, each is then worked out once and not first
// without endpoints. It is for a table that is not to be used before Release.
func (t *Table) Hold() { t.held = map[*entry]bool{} }

// Release ends Hold, and works out what waits.
func (t *Table) Release() []Change {
	held := t.held
	t.held = nil
	for e := range held {
		t.recompile(e)
	}
	return t.settle()
}

// waits reports whether an entry is still to get slices: one for each family.
func (t *Table) waits(e *entry) bool {
	return t.held != nil && e.svc != nil && len(e.slices) < max(1, len(e.svc.Spec.ClusterIPs))
}

// Problems are what is ignored of a Service and its slices.
func (t *Table) Problems(svc types.NamespacedName) []Problem {
	if e := t.entries[svc]; e != nil {
		return e.reported
	}
	return nil
}

// All are the Services that have Ports, sorted by namespace and name.
func (t *Table) All() iter.Seq2[types.NamespacedName, []Port] {
	return func(yield func(types.NamespacedName, []Port) bool) {
		for _, name := range slices.SortedFunc(maps.Keys(t.entries), CompareNames) {
			if ports := t.entries[name].wanted; len(ports) > 0 && !yield(name, ports) {
				return
			}
		}
	}
}

// SetService takes a Service that came or changed.
func (t *Table) SetService(svc *corev1.Service) []Change {
	if svc == nil {
		return nil
	}
	e := t.entry(types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name})
	if e.svc == svc {
		return nil // a resync
	}
	e.svc = svc
	t.recompile(e)
	return t.settle()
}

// DeleteService takes a Service that went. Its slices go by themselves.
func (t *Table) DeleteService(svc types.NamespacedName) []Change {
	e := t.entries[svc]
	if e == nil || e.svc == nil {
		return nil
	}
	e.svc = nil
	t.recompile(e)
	return t.settle()
}

// SetSlice takes an EndpointSlice that came or changed. It belongs to the
// Service of its namespace that its label kubernetes.io/service-name names now.
func (t *Table) SetSlice(s *discoveryv1.EndpointSlice) []Change {
	if s == nil {
		return nil
	}
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	former, had := t.owners[name]
	owner := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
	if had && (former != owner || ignoredSlice(s)) {
		t.dropSlice(name, former)
	}
	if owner.Name != "" && !ignoredSlice(s) {
		e := t.entry(owner)
		switch i, found := e.find(name.Name); {
		case !found:
			e.slices = slices.Insert(e.slices, i, s)
		case e.slices[i] == s:
			return nil // a resync
		default:
			e.slices[i] = s
		}
		t.owners[name] = owner
		t.recompile(e)
	}
	return t.settle()
}

// DeleteSlice takes an EndpointSlice that went.
func (t *Table) DeleteSlice(slice types.NamespacedName) []Change {
	owner, ok := t.owners[slice]
	if !ok {
		return nil
	}
	t.dropSlice(slice, owner)
	return t.settle()
}

// SetNode takes what changed of the node. It costs what all Services cost.
func (t *Table) SetNode(node Node) []Change {
	node = node.normal()
	if node.equal(t.node) {
		return nil
	}
	node.Nodes = t.node.Nodes
	t.node = node
	for _, e := range t.entries {
		t.recompile(e)
	}
	return t.settle()
}

func (t *Table) entry(name types.NamespacedName) *entry {
	e := t.entries[name]
	if e == nil {
		e = &entry{name: name}
		t.entries[name] = e
	}
	return e
}

// find is the place of a slice, or where it would have to be.
func (e *entry) find(slice string) (i int, found bool) {
	return slices.BinarySearchFunc(e.slices, slice, func(s *discoveryv1.EndpointSlice, name string) int { return strings.Compare(s.Name, name) })
}

func (t *Table) dropSlice(slice, owner types.NamespacedName) {
	delete(t.owners, slice)
	e := t.entries[owner]
	if i, found := e.find(slice.Name); found {
		e.slices = slices.Delete(e.slices, i, i+1)
	}
	t.recompile(e)
}

// recompile works out what an entry asks for, and claims its frontends.
func (t *Table) recompile(e *entry) {
	if t.waits(e) && len(e.asked) == 0 {
		t.held[e] = true
		return
	}
	delete(t.held, e)
	asked, nodes, problems := compile(e.svc, e.slices, &t.node)
	t.useNodes(e, nodes)
	t.dirty[e] = true
	if !sameClaims(e.asked, asked) || t.claims.contested(e) {
		for _, other := range t.claims.replace(e, asked) {
			t.dirty[other] = true
		}
	}
	if !EqualPorts(e.asked, asked) {
		e.asked = asked
	}
	e.problems = problems
	if e.svc == nil && len(e.slices) == 0 {
		delete(t.entries, e.name)
	}
}

// manyDirty is more entries than a change of one Service touches.
const manyDirty = 64

// settle gives the dirty entries what they have now, and says what changed.
func (t *Table) settle() []Change {
	var out []Change
	for e := range t.dirty {
		wanted, lost := t.claims.granted(e)
		reported := e.problems
		if len(lost) > 0 {
			reported = slices.Concat(reported, lost)
		}
		if same := EqualPorts(e.wanted, wanted); same && slices.Equal(e.reported, reported) {
			continue
		} else if same {
			wanted = e.wanted
		}
		out = append(out, Change{e.name, e.wanted, wanted, reported})
		e.wanted, e.reported = wanted, reported
	}
	if len(t.dirty) > manyDirty {
		t.dirty = map[*entry]bool{} // one that is cleared keeps its size, and each look at it costs that
	} else {
		clear(t.dirty)
	}
	slices.SortFunc(out, func(a, b Change) int { return CompareNames(a.Service, b.Service) })
	return out
}
