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

	"golang.org/x/sys/unix"
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

// nft looks at both families' nf_tables: kube-proxy's own tables and what
// iptables-nft keeps there.
func (d detector) nft(ctx context.Context, f *frontends) []Evidence {
	there, why := d.nfTables()
	var s *netlinkSocket
	if there == Yes {
		var err error
		if s, err = openNetlink(unix.NETLINK_NETFILTER); err != nil {
			there, why = judgeNft(err)
		} else {
			defer s.close()
		}
	}
	var evidence []Evidence
	for _, fam := range []family{ip4, ip6} {
		for _, look := range []struct {
			source string
			at     lookAt
		}{{SourceNftables, lookAtTable}, {SourceNft, lookAtChains}} {
			e := Evidence{Source: look.source + " " + fam.name, Found: there, Detail: why}
			switch {
			case ctx.Err() != nil:
				e.Found, e.Detail = Unknown, ctx.Err().Error()
			case there == Yes:
				e.Found, e.Detail = inOneGeneration(s, fam, f, look.at)
			}
			if e.Found == Unknown {
				f.markIncomplete(fam)
			}
			evidence = append(evidence, e)
		}
	}
	return evidence
}

// lookAt is one look at nf_tables; it adds what is served.
type lookAt func(*netlinkSocket, family, *frontends) (Answer, string)

// inOneGeneration repeats a look until no transaction came between its
// questions. The number of the ruleset's generation tells: kube-proxy may
// replace a table between two questions, and one dump may meet half of that.
func inOneGeneration(s *netlinkSocket, fam family, f *frontends, look lookAt) (Answer, string) {
	var seen frontends
	var found Answer
	var detail string
	for range 5 {
		before := generation(s)
		seen = frontends{}
		found, detail = look(s, fam, &seen)
		if after := generation(s); after == before {
			f.merge(seen)
			return found, detail
		}
	}
	seen.markIncomplete(fam)
	f.merge(seen)
	if found == No {
		found = Unknown
	}
	return found, detail + "; " + errInterrupted.Error()
}

// generation is the number of the last transaction in this network namespace,
// or 0 where the kernel doesn't say.
func generation(s *netlinkSocket) (id uint32) {
	body := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}
	_ = s.get(nftMessage(unix.NFT_MSG_GETGEN), body, func(m []byte) {
		id, _ = be32(attribute(nftAttributes(m), unix.NFTA_GEN_ID))
	})
	return id
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
		return Unknown, "not allowed: needs CAP_NET_ADMIN"
	}
	return Unknown, err.Error()
}

func nftMessage(msg uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | msg }

// nftBody begins a question with its family (struct nfgenmsg).
func nftBody(fam family) []byte { return []byte{fam.nfproto, unix.NFNETLINK_V0, 0, 0} }

// nftAttributes skips the nfgenmsg of an answer.
func nftAttributes(body []byte) []byte { return body[min(4, len(body)):] }

// lookAtTable looks for the table of kube-proxy's nftables mode.
func lookAtTable(s *netlinkSocket, fam family, f *frontends) (Answer, string) {
	body := appendString(nftBody(fam), unix.NFTA_TABLE_NAME, nftTable)
	err := s.get(nftMessage(unix.NFT_MSG_GETTABLE), body, func([]byte) {})
	if found, why := judgeNft(err); found != Yes {
		return found, why
	}
	services, err := readServiceMap(s, fam, f)
	detail := fmt.Sprintf("table %s %s", fam.name, nftTable)
	if err != nil {
		f.markIncomplete(fam)
		return Yes, fmt.Sprintf("%s; could not read map %s: %v", detail, serviceMap, err)
	}
	return Yes, fmt.Sprintf("%s (%d TCP service addresses)", detail, services)
}

// readServiceMap adds the TCP addresses of the map, and counts them. A table
// without the map serves nothing.
func readServiceMap(s *netlinkSocket, fam family, f *frontends) (n int, err error) {
	body := appendString(nftBody(fam), unix.NFTA_SET_ELEM_LIST_TABLE, nftTable)
	body = appendString(body, unix.NFTA_SET_ELEM_LIST_SET, serviceMap)
	services, err := readAlike(func() (map[service]bool, error) {
		seen := make(map[service]bool)
		err := s.dump(nftMessage(unix.NFT_MSG_GETSETELEM), body, func(m []byte) {
			for _, element := range attributes(attribute(nftAttributes(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				k, ok := parseServiceKey(nested(element, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE), fam)
				if !ok {
					f.markIncomplete(fam)
					continue
				}
				seen[k] = true
			}
		})
		return seen, err
	}, maps.Equal)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	for k := range services {
		if k.proto == unix.IPPROTO_TCP {
			f.add(k.addr)
			n++
		}
	}
	return n, err
}

// service is what a Service's port is known by.
type service struct {
	addr  netip.AddrPort
	proto uint8
}

// parseServiceKey reads a key of the map: address, protocol and port, each
// filled up to four bytes, all in network byte order.
func parseServiceKey(key []byte, fam family) (service, bool) {
	n := fam.addrLen
	if len(key) != n+8 {
		return service{}, false
	}
	addr, _ := netip.AddrFromSlice(key[:n])
	return service{netip.AddrPortFrom(addr, binary.BigEndian.Uint16(key[n+4:])), key[n]}, true
}

// lookAtChains looks for the chains of kube-proxy's iptables mode, kept by
// iptables-nft.
func lookAtChains(s *netlinkSocket, fam family, f *frontends) (Answer, string) {
	var found []string
	for _, want := range nftChains {
		body := appendString(nftBody(fam), unix.NFTA_CHAIN_TABLE, want.table)
		body = appendString(body, unix.NFTA_CHAIN_NAME, want.chain)
		err := s.get(nftMessage(unix.NFT_MSG_GETCHAIN), body, func([]byte) {})
		there, why := judgeNft(err)
		switch {
		case there == Unknown:
			return there, why
		case there == No:
			continue
		}
		name := want.table + " " + want.chain
		if want.table == "nat" && want.chain == servicesChain {
			name += " (" + readServicesChain(s, fam, f) + ")"
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
func readServicesChain(s *netlinkSocket, fam family, f *frontends) string {
	hooked := false
	for _, builtin := range []string{"OUTPUT", "PREROUTING"} {
		targets, err := dumpNatChain(s, fam, builtin)
		if err != nil {
			f.markIncomplete(fam)
			return "could not read chain " + builtin + ": " + err.Error()
		}
		hooked = hooked || slices.ContainsFunc(targets, func(r rule) bool { return r.target == servicesChain })
	}
	rules, err := dumpNatChain(s, fam, servicesChain)
	if err != nil {
		f.markIncomplete(fam)
		return "could not read its rules: " + err.Error()
	}
	return addFromChain(f, fam, rules, hooked)
}

// dumpNatChain reads the rules of a chain of table nat. An absent chain is
// empty.
func dumpNatChain(s *netlinkSocket, fam family, chain string) ([]rule, error) {
	body := appendString(nftBody(fam), unix.NFTA_RULE_TABLE, "nat")
	body = appendString(body, unix.NFTA_RULE_CHAIN, chain)
	rules, err := readAlike(func() (rules []rule, err error) {
		err = s.dump(nftMessage(unix.NFT_MSG_GETRULE), body, func(m []byte) {
			rules = append(rules, parseNftRule(attribute(nftAttributes(m), unix.NFTA_RULE_EXPRESSIONS), fam))
		})
		return rules, err
	}, slices.Equal)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return rules, err
}

// addFromChain adds what KUBE-SERVICES of either kind of iptables leads to,
// if a built-in chain jumps to it.
func addFromChain(f *frontends, fam family, rules []rule, hooked bool) string {
	if !hooked {
		return "nothing jumps to it"
	}
	n, unclear := 0, 0
	for _, r := range rules {
		switch {
		case !isServiceChain(r.target):
		case !r.exact():
			unclear++
		case r.proto == unix.IPPROTO_TCP:
			f.add(netip.AddrPortFrom(r.addr, r.port))
			n++
		}
	}
	detail := fmt.Sprintf("%d TCP service addresses", n)
	if unclear > 0 {
		f.markIncomplete(fam)
		detail += fmt.Sprintf(", %d rules not understood", unclear)
	}
	return detail
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
// the kernel goes on by a count of things where a datagram was full. It counts
// those too which a transaction has deleted, until it has freed them, and that
// goes on after the transaction has its number (nf_tables_commit). In the same
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
