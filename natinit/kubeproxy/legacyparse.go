package kubeproxy

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/google/nftables/xt"
)

// legacyLayout says where the parts of struct ipt_entry or ip6t_entry are, the
// same on amd64 and arm64.
type legacyLayout struct {
	family
	dst, mask          int // the destination
	srcMask            int
	ifaces, ifacesLen  int // names and masks of both interfaces
	proto              int
	invflags           int
	targetOffset, next int // both u16, host byte order
	size               int // of the entry's fixed part; matches follow, then the target
}

var (
	layout4 = legacyLayout{family: ip4, dst: 4, srcMask: 8, mask: 12, ifaces: 16, ifacesLen: 64,
		proto: 80, invflags: 83, targetOffset: 88, next: 90, size: 112}
	layout6 = legacyLayout{family: ip6, dst: 16, srcMask: 32, mask: 48, ifaces: 64, ifacesLen: 64,
		proto: 128, invflags: 132, targetOffset: 140, next: 142, size: 168}
)

// legacyRules is what a table says about Services. It holds nothing of the
// table's memory.
type legacyRules struct {
	found  [len(legacyChains)]bool
	rules  []rule // of KUBE-SERVICES
	hooked bool   // a built-in chain jumps to KUBE-SERVICES
}

// errMalformed never happens with a kernel that has the layout above.
var errMalformed = errors.New("the table is not laid out as expected")

// chainStart is where the rules of a user's chain begin, which is where jumps
// to it lead.
type chainStart struct {
	at   int
	name []byte // in the table's memory
}

// jump is a rule's way to the chain that begins at an offset.
type jump struct {
	rule
	to int
}

// parse walks over all entries once. A user's chain begins with an entry whose
// target is "ERROR" and holds the name; the table ends with one more.
func (t legacyTable) parse() (legacyRules, error) {
	var out legacyRules
	var starts []chainStart // by offset; there can be 30,000
	var services, builtins []jump
	inServices, inBuiltin := false, false
	for at := 0; at < len(t.entries); {
		inBuiltin = inBuiltin || t.hooks[at]
		e, err := t.layout.entry(t.entries[at:])
		if err != nil {
			return legacyRules{}, err
		}
		at += len(e.bytes)
		kind, value := e.target()
		switch {
		case string(kind) == "ERROR":
			name := untilZero(value)
			starts = append(starts, chainStart{at, name})
			inBuiltin, inServices = false, string(name) == servicesChain
			if i := slices.Index(legacyChains[:], string(name)); i >= 0 {
				out.found[i] = true
			}
		case len(kind) > 0 || len(value) < 4: // not a jump
		case inServices:
			services = append(services, jump{e.rule(), int(int32(binary.NativeEndian.Uint32(value)))})
		case inBuiltin:
			builtins = append(builtins, jump{to: int(int32(binary.NativeEndian.Uint32(value)))})
		}
	}
	out.hooked = slices.ContainsFunc(builtins, func(j jump) bool { return string(chainAt(starts, j.to)) == servicesChain })
	for _, j := range services {
		j.target = string(chainAt(starts, j.to))
		out.rules = append(out.rules, j.rule)
	}
	return out, nil
}

// chainAt names the chain that a jump leads to; a verdict, which is below
// zero, leads to none.
func chainAt(starts []chainStart, at int) []byte {
	i, ok := slices.BinarySearchFunc(starts, at, func(s chainStart, at int) int { return cmp.Compare(s.at, at) })
	if !ok {
		return nil
	}
	return starts[i].name
}

// legacyEntry is one entry, whole.
type legacyEntry struct {
	legacyLayout
	bytes  []byte
	behind int // where the matches end and the target begins
}

func (l legacyLayout) entry(b []byte) (legacyEntry, error) {
	if len(b) < l.size {
		return legacyEntry{}, errMalformed
	}
	target, next := int(binary.NativeEndian.Uint16(b[l.targetOffset:])), int(binary.NativeEndian.Uint16(b[l.next:]))
	if target < l.size || next < target+xtHeader || next > len(b) {
		return legacyEntry{}, errMalformed
	}
	return legacyEntry{legacyLayout: l, bytes: b[:next], behind: target}, nil
}

// xtHeader is the size of struct xt_entry_match and xt_entry_target: u16 size,
// 29 bytes of name, revision. Then comes what the extension defines.
const xtHeader = 32

// target returns the name and the value; the standard target has no name, and
// its value is a verdict: below zero a final one, else an offset to jump to.
func (e legacyEntry) target() (name, value []byte) {
	b := e.bytes[e.behind:]
	return untilZero(b[2:31]), b[xtHeader:]
}

// rule reads what the entry matches.
func (e legacyEntry) rule() rule {
	b := e.bytes
	r := rule{proto: uint8(binary.NativeEndian.Uint16(b[e.proto:])), odd: b[e.invflags] != 0}
	if isAll(b[e.mask:e.mask+e.addrLen], 0xff) {
		r.addr, _ = netip.AddrFromSlice(b[e.dst : e.dst+e.addrLen])
	}
	if !isAll(b[e.srcMask:e.srcMask+e.addrLen], 0) || !isAll(b[e.ifaces:e.ifaces+e.ifacesLen], 0) {
		r.odd = true
	}
	for at := e.size; at < e.behind; {
		size := 0
		if e.behind-at >= xtHeader {
			size = int(binary.NativeEndian.Uint16(b[at:]))
		}
		if size < xtHeader || size > e.behind-at {
			r.odd = true
			break
		}
		info, err := xt.Unmarshal(string(untilZero(b[at+2:at+31])), xt.TableFamily(e.nfproto), uint32(b[at+31]), b[at+xtHeader:at+size])
		if err != nil {
			r.odd = true
		} else {
			r.match(info)
		}
		at += size
	}
	return r
}

func isAll(b []byte, want byte) bool {
	for _, c := range b {
		if c != want {
			return false
		}
	}
	return true
}

// untilZero is a string of C's, without a copy.
func untilZero(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}
