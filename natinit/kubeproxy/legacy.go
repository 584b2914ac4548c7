package kubeproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxLegacyTable bounds what is copied out of the kernel: about 100,000 rules.
const maxLegacyTable = 64 << 20

// legacy looks at iptables-legacy's tables of a family.
//
// A table comes into being with the first question about it, and so does its
// module (x_tables.c, xt_find_table_lock). So the list of those that exist is
// read first, and others are not asked for.
func (d detector) legacy(fam family, f *frontends) Evidence {
	e := Evidence{Source: SourceLegacy + " " + fam.name, Found: No, Detail: "none"}
	list := fam.name + "_tables_names"
	names, err := os.ReadFile(filepath.Join(d.net, list))
	if errors.Is(err, fs.ErrNotExist) && exists(d.net) {
		e.Detail = fam.name + "_tables is not loaded"
		return e
	}
	if err != nil {
		f.markIncomplete(fam)
		e.Found, e.Detail = Unknown, err.Error()
		return e
	}
	var found []string
	for _, table := range []string{"nat", "filter"} {
		if !slices.Contains(strings.Fields(string(names)), table) {
			continue
		}
		chains, err := lookAtLegacyTable(fam, table, f)
		if err != nil {
			f.markIncomplete(fam)
			if e.Found != Yes {
				e.Found = Unknown
			}
			found = append(found, fmt.Sprintf("could not read %s: %v", table, err))
			continue
		}
		if len(chains) > 0 {
			e.Found = Yes
			found = append(found, chains...)
		}
	}
	if len(found) > 0 {
		e.Detail = strings.Join(found, ", ")
	}
	return e
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lookAtLegacyTable names kube-proxy's chains in a table that exists.
func lookAtLegacyTable(fam family, table string, f *frontends) ([]string, error) {
	t, err := readLegacyTable(fam, table)
	if err != nil {
		return nil, err
	}
	parsed, err := t.parse()
	if err != nil {
		f.markIncomplete(fam)
		return nil, err
	}
	var found []string
	for _, chain := range []string{servicesChain, "KUBE-NODEPORTS", "KUBE-PROXY-CANARY"} {
		if !parsed.chains[chain] {
			continue
		}
		name := table + " " + chain
		if table == "nat" && chain == servicesChain {
			name += " (" + addFromChain(f, fam, parsed.addrs, parsed.unclear, parsed.hooked) + ")"
		}
		found = append(found, name)
	}
	return found, nil
}

// The socket options of both families (uapi/linux/netfilter_ipv4/ip_tables.h
// and netfilter_ipv6/ip6_tables.h).
const (
	optGetInfo    = 64
	optGetEntries = 65
)

// legacyInfo is struct ipt_getinfo, and ip6t_getinfo.
type legacyInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32 // where each built-in chain begins, in bytes
	Underflow  [5]uint32
	NumEntries uint32
	Size       uint32 // of all entries, in bytes
}

// legacyTable is a table as the kernel hands it out: entries of variable size,
// one after the other.
type legacyTable struct {
	layout  legacyLayout
	hooks   map[int]bool // offsets at which built-in chains begin
	entries []byte
}

// readLegacyTable copies a table out of the kernel. It asks again when the
// table has changed its size between the two questions (EAGAIN).
func readLegacyTable(fam family, table string) (legacyTable, error) {
	domain, level, layout := unix.AF_INET, unix.SOL_IP, layout4
	if fam == ip6 {
		domain, level, layout = unix.AF_INET6, unix.SOL_IPV6, layout6
	}
	// Any socket of the family takes these options. A raw one, as iptables
	// uses, would need CAP_NET_RAW as well.
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return legacyTable{}, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for range 5 {
		var info legacyInfo
		copy(info.Name[:], table)
		size := uint32(unsafe.Sizeof(info))
		if err := getsockopt(fd, level, optGetInfo, unsafe.Pointer(&info), &size); err != nil {
			return legacyTable{}, err
		}
		if info.Size > maxLegacyTable {
			return legacyTable{}, fmt.Errorf("%d MiB are too much to read", info.Size>>20)
		}
		// struct ipt_get_entries: name, size, four bytes of padding, entries.
		const header = 40
		buf := make([]byte, header+int(info.Size))
		copy(buf, table)
		binary.NativeEndian.PutUint32(buf[32:], info.Size)
		size = uint32(len(buf))
		err := getsockopt(fd, level, optGetEntries, unsafe.Pointer(&buf[0]), &size)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return legacyTable{}, err
		}
		t := legacyTable{layout: layout, hooks: make(map[int]bool), entries: buf[header:]}
		for hook, offset := range info.HookEntry {
			if info.ValidHooks&(1<<hook) != 0 {
				t.hooks[int(offset)] = true
			}
		}
		return t, nil
	}
	return legacyTable{}, errInterrupted
}

func getsockopt(fd, level, option int, value unsafe.Pointer, size *uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(value), uintptr(unsafe.Pointer(size)), 0)
	if errno == unix.EPERM {
		return errors.New("not allowed: needs CAP_NET_ADMIN")
	}
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}

// legacyLayout says where the parts of struct ipt_entry or ip6t_entry are, the
// same on amd64 and arm64.
type legacyLayout struct {
	addrLen            int
	dst, mask          int // the destination
	src, srcMask       int
	ifaces, ifacesLen  int // names and masks of both interfaces
	proto              int
	invflags           int
	targetOffset, next int // both u16, host byte order
	size               int // of the entry's fixed part; matches follow, then the target
}

var (
	layout4 = legacyLayout{addrLen: 4, src: 0, dst: 4, srcMask: 8, mask: 12, ifaces: 16, ifacesLen: 64,
		proto: 80, invflags: 83, targetOffset: 88, next: 90, size: 112}
	layout6 = legacyLayout{addrLen: 16, src: 0, dst: 16, srcMask: 32, mask: 48, ifaces: 64, ifacesLen: 64,
		proto: 128, invflags: 132, targetOffset: 140, next: 142, size: 168}
)

// legacyRules is what a table says about Services.
type legacyRules struct {
	chains  map[string]bool  // all of the user's chains
	addrs   []netip.AddrPort // TCP, from KUBE-SERVICES to a Service's chain
	unclear int              // such rules that were not understood
	hooked  bool             // a built-in chain jumps to KUBE-SERVICES
}

// errMalformed never happens with a kernel that has the layout above.
var errMalformed = errors.New("the table is not laid out as expected")

// jump is a rule's way from a chain to the chain that begins at an offset.
type jump struct {
	rule
	to int
}

// parse walks over all entries once. A user's chain begins with an entry whose
// target is "ERROR" and holds the name; jumps lead behind it.
func (t legacyTable) parse() (legacyRules, error) {
	out := legacyRules{chains: make(map[string]bool)}
	starts := make(map[int]string)
	var fromServices, fromBuiltin []jump
	current, builtin := "", false
	for at := 0; at < len(t.entries); {
		if t.hooks[at] {
			current, builtin = "", true
		}
		e, err := t.layout.entry(t.entries[at:])
		if err != nil {
			return legacyRules{}, err
		}
		at += len(e.bytes)
		name, value := e.target()
		switch {
		case name == "ERROR":
			current, builtin = text(value), false
			if at < len(t.entries) { // else it is the end of the table
				starts[at] = current
				out.chains[current] = true
			}
		case name != "" || len(value) < 4:
		case current == servicesChain:
			fromServices = append(fromServices, jump{rule: e.rule(), to: int(int32(binary.NativeEndian.Uint32(value)))})
		case builtin:
			fromBuiltin = append(fromBuiltin, jump{to: int(int32(binary.NativeEndian.Uint32(value)))})
		}
	}
	out.hooked = slices.ContainsFunc(fromBuiltin, func(j jump) bool { return starts[j.to] == servicesChain })
	for _, j := range fromServices {
		switch {
		case !isServiceChain(starts[j.to]):
		case !j.exact():
			out.unclear++
		case j.proto == unix.IPPROTO_TCP:
			out.addrs = append(out.addrs, netip.AddrPortFrom(j.addr, j.port))
		}
	}
	return out, nil
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
func (e legacyEntry) target() (name string, value []byte) {
	b := e.bytes[e.behind:]
	return text(b[2:31]), b[xtHeader:]
}

// rule reads what the entry matches.
func (e legacyEntry) rule() rule {
	b := e.bytes
	r := rule{proto: uint8(binary.NativeEndian.Uint16(b[e.proto:])), odd: b[e.invflags] != 0}
	all := bytes.Repeat([]byte{0xff}, e.addrLen)
	if bytes.Equal(b[e.mask:e.mask+e.addrLen], all) {
		r.addr, _ = netip.AddrFromSlice(b[e.dst : e.dst+e.addrLen])
	}
	if !isZero(b[e.srcMask:e.srcMask+e.addrLen]) || !isZero(b[e.ifaces:e.ifaces+e.ifacesLen]) {
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
		r.match(text(b[at+2:at+31]), b[at+xtHeader:at+size])
		at += size
	}
	return r
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
