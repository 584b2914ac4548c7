package kubeproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

const (
	nftTable = "kube-proxy" // of kube-proxy's nftables mode, in families ip and ip6

	// In that table: address . protocol . port -> the chain that picks an
	// endpoint (pkg/proxy/nftables). Services without endpoints are in another.
	serviceMap = "service-ips"

	servicesChain = "KUBE-SERVICES"
)

// nftChains are the chains of iptables-nft that are looked for, by table. They
// are asked for by name: a node can have 30,000 others.
var nftChains = []struct{ table, chain string }{
	{"nat", servicesChain}, {"nat", "KUBE-NODEPORTS"}, {"nat", "KUBE-PROXY-CANARY"},
	{"filter", servicesChain}, {"filter", "KUBE-NODEPORTS"}, {"filter", "KUBE-PROXY-CANARY"},
	{"mangle", "KUBE-PROXY-CANARY"},
}

// errInterrupted says that rules changed while they were read: what was read may lack things that were there all the time.
var errInterrupted = errors.New("changed while being read")

// askNft sends a question to nf_tables, in the network namespace of the calling thread, and returns the attributes of the
// answers. google/nftables does not serve for that: it drops errnos, and expressions that it does not know, so that a
// rule with a condition would pass for one without.
func askNft(fam family, msg, flags int, attrs ...*nl.RtAttr) (answers [][]byte, err error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|msg, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: fam.nfproto, Version: unix.NFNETLINK_V0})
	for _, a := range attrs {
		req.AddData(a)
	}
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(m []byte) bool {
		answers = append(answers, m[min(nl.SizeofNfgenmsg, len(m)):])
		return true
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		err = errInterrupted
	}
	return answers, err
}

func named(kind int, name string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(name)) }

// nft looks at both families' nf_tables: kube-proxy's own tables and what
// iptables-nft keeps there.
func (d *Detector) nft(ctx context.Context, f *frontends) []Evidence {
	there, why := d.nfTables()
	var evidence []Evidence
	for _, fam := range []family{ip4, ip6} {
		for _, place := range []struct {
			source string
			at     func(family, *frontends) (Answer, string)
		}{{SourceNftables, lookAtTable}, {SourceNft, lookAtChains}} {
			e := Evidence{Source: place.source + " " + fam.name, Found: there, Detail: why}
			switch {
			case ctx.Err() != nil:
				e.Found, e.Detail = Unknown, ctx.Err().Error()
			case there == Yes:
				e = d.inOneGeneration(fam, f, e.Source, place.at)
			}
			if e.Found == Unknown {
				f.markIncomplete(fam)
			}
			evidence = append(evidence, e)
		}
	}
	return evidence
}

// inOneGeneration repeats a look until no transaction came between its
// questions. The number of the ruleset's generation tells: kube-proxy may
// replace a table between two questions, and one dump may meet half of that.
func (d *Detector) inOneGeneration(fam family, f *frontends, source string, at func(family, *frontends) (Answer, string)) Evidence {
	e := Evidence{Source: source}
	var seen frontends
	for range 5 {
		before := generation()
		seen = newFrontends(f.all, f.asked)
		e = d.once(source, before, &seen, func(f *frontends) Evidence {
			e.Found, e.Detail = at(fam, f)
			return e
		})
		if generation() == before {
			f.merge(seen)
			return e
		}
	}
	seen.markIncomplete(fam)
	f.merge(seen)
	if e.Found == No {
		e.Found = Unknown
	}
	e.Detail += "; " + errInterrupted.Error()
	return e
}

// generation is the number of the last transaction in this network namespace, empty where the kernel doesn't say.
func generation() string {
	answer, err := askNft(family{}, unix.NFT_MSG_GETGEN, 0)
	if err != nil || len(answer) == 0 {
		return ""
	}
	return string(attribute(answer[0], unix.NFTA_GEN_ID))
}

// judgeNft tells an absent thing from a refused question.
func judgeNft(err error) (Answer, string) {
	switch {
	case err == nil:
		return Yes, ""
	case errors.Is(err, unix.ENOENT):
		return No, "none"
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return No, "the kernel has no nf_tables"
	case errors.Is(err, unix.EPERM):
		return Unknown, privileges.Refused("read", "nf_tables", err, unix.CAP_NET_ADMIN).Error()
	}
	return Unknown, err.Error()
}

// lookAtTable looks for the table of kube-proxy's nftables mode.
func lookAtTable(fam family, f *frontends) (Answer, string) {
	_, err := askNft(fam, unix.NFT_MSG_GETTABLE, 0, named(unix.NFTA_TABLE_NAME, nftTable))
	if found, why := judgeNft(err); found != Yes {
		return found, why
	}
	detail := fmt.Sprintf("table %s %s", fam.name, nftTable)
	if err := readServiceMap(fam, f); err != nil {
		f.markIncomplete(fam)
		return Yes, fmt.Sprintf("%s; could not read map %s: %v", detail, serviceMap, err)
	}
	return Yes, detail
}

// readServiceMap looks up the addresses that are asked for, or reads the whole
// map. A table without the map serves nothing.
func readServiceMap(fam family, f *frontends) error {
	table, set := named(unix.NFTA_SET_ELEM_LIST_TABLE, nftTable), named(unix.NFTA_SET_ELEM_LIST_SET, serviceMap)
	for addr := range f.of(fam) {
		// A transaction that replaces the table may come between the look-ups of the table and of the element.
		there, err := readAlike(func() (bool, error) {
			_, err := askNft(fam, unix.NFT_MSG_GETSETELEM, 0, table, set, serviceKey(addr))
			if errors.Is(err, unix.ENOENT) {
				return false, nil
			}
			return err == nil, err
		}, func(a, b bool) bool { return a == b })
		if err != nil {
			return err
		}
		if there {
			f.add(addr)
		}
	}
	if !f.all {
		return nil
	}
	services, err := readAlike(func() (map[netip.AddrPort]bool, error) {
		seen := make(map[netip.AddrPort]bool)
		answer, err := askNft(fam, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, table, set)
		for _, m := range answer {
			for _, element := range attributes(attribute(m, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				addr, proto, ok := parseServiceKey(attribute(attribute(element.Data, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE), fam)
				if !ok {
					f.markIncomplete(fam)
				} else if proto == unix.IPPROTO_TCP {
					seen[addr] = true
				}
			}
		}
		return seen, err
	}, maps.Equal)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	for addr := range services {
		f.add(addr)
	}
	return err
}

// serviceKey is the list of one element: address, protocol and port, each filled up to four bytes, in network byte order.
func serviceKey(addr netip.AddrPort) *nl.RtAttr {
	key := append(addr.Addr().AsSlice(), unix.IPPROTO_TCP, 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, addr.Port()), 0, 0)
	list := nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, nil).
		AddRtAttr(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, nil).
		AddRtAttr(unix.NFTA_DATA_VALUE, key)
	return list
}

// parseServiceKey reads what serviceKey writes.
func parseServiceKey(key []byte, fam family) (addr netip.AddrPort, proto uint8, ok bool) {
	n := fam.addrLen
	if len(key) != n+8 {
		return netip.AddrPort{}, 0, false
	}
	ip, _ := netip.AddrFromSlice(key[:n])
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(key[n+4:])), key[n], true
}

// lookAtChains looks for the chains of kube-proxy's iptables mode, kept by
// iptables-nft.
func lookAtChains(fam family, f *frontends) (Answer, string) {
	var found []string
	for _, want := range nftChains {
		_, err := askNft(fam, unix.NFT_MSG_GETCHAIN, 0, named(unix.NFTA_CHAIN_TABLE, want.table), named(unix.NFTA_CHAIN_NAME, want.chain))
		there, why := judgeNft(err)
		switch {
		case there == Unknown:
			return there, why
		case there == No:
			continue
		}
		name := want.table + " " + want.chain
		if want.table == "nat" && want.chain == servicesChain && f.wants(fam) {
			name += readServicesChain(fam, f)
		}
		found = append(found, name)
	}
	if len(found) == 0 {
		return No, "none"
	}
	return Yes, strings.Join(found, ", ")
}

// readServicesChain adds the TCP addresses that a rule sends to a Service's
// chain.
func readServicesChain(fam family, f *frontends) string {
	hooked := false
	for _, builtin := range []string{"OUTPUT", "PREROUTING"} {
		rules, err := readNatChain(fam, builtin)
		if err != nil {
			f.markIncomplete(fam)
			return " (could not read chain " + builtin + ": " + err.Error() + ")"
		}
		hooked = hooked || slices.ContainsFunc(rules, func(r rule) bool { return r.target == servicesChain })
	}
	rules, err := readNatChain(fam, servicesChain)
	if err != nil {
		f.markIncomplete(fam)
		return " (could not read its rules: " + err.Error() + ")"
	}
	return addFromChain(f, fam, rules, hooked)
}

// readNatChain reads the rules of a chain of table nat. An absent chain is
// empty.
func readNatChain(fam family, chain string) ([]rule, error) {
	rules, err := readAlike(func() ([]rule, error) {
		answer, err := askNft(fam, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, named(unix.NFTA_RULE_TABLE, "nat"), named(unix.NFTA_RULE_CHAIN, chain))
		rules := make([]rule, len(answer))
		for i, m := range answer {
			rules[i] = parseNftRule(attribute(m, unix.NFTA_RULE_EXPRESSIONS), fam)
		}
		return rules, err
	}, slices.Equal)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return rules, err
}

// addFromChain adds what KUBE-SERVICES of either kind of iptables leads to,
// if a built-in chain jumps to it. It returns what there is to say of that.
func addFromChain(f *frontends, fam family, rules []rule, hooked bool) string {
	if !hooked {
		return " (nothing jumps to it)"
	}
	unclear := 0
	for _, r := range rules {
		switch {
		case !isServiceChain(r.target):
		case !r.exact():
			unclear++
		case r.proto == unix.IPPROTO_TCP:
			f.add(netip.AddrPortFrom(r.addr, r.port))
		}
	}
	if unclear == 0 {
		return ""
	}
	f.markIncomplete(fam)
	return fmt.Sprintf(" (%d rules not understood)", unclear)
}

// isServiceChain knows the chains that lead to a Service's endpoints: from
// inside, from outside (since 1.24), and two older names of the latter.
func isServiceChain(name string) bool {
	for _, prefix := range []string{"KUBE-SVC-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// readAlike reads until it gets the same twice in a row. One dump isn't proof:
// the kernel continues by a count of things where a datagram was full. It counts
// those too which a transaction has deleted, until it has freed them, and that
// continues after the transaction has its number (nf_tables_commit). In the same
// way the elements of a map move when its hash table grows. The rest of the
// dump then lacks some things, and nothing in it says so.
func readAlike[T any](read func() (T, error), equal func(a, b T) bool) (T, error) {
	last, err := read()
	for range 6 {
		if err != nil && !errors.Is(err, errInterrupted) {
			return last, err
		}
		next, nextErr := read()
		if err == nil && nextErr == nil && equal(last, next) {
			return next, nil
		}
		last, err = next, nextErr
	}
	return last, errInterrupted
}
