package kubeproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
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
			at     func(*netlinkSocket, family, *frontends) (Answer, string)
		}{{SourceNftables, lookAtTable}, {SourceNft, lookAtChains}} {
			e := Evidence{Source: look.source + " " + fam.name, Found: there, Detail: why}
			switch {
			case ctx.Err() != nil:
				e.Found, e.Detail = Unknown, ctx.Err().Error()
			case there == Yes:
				e.Found, e.Detail = look.at(s, fam, f)
			}
			if e.Found == Unknown {
				f.markIncomplete(fam)
			}
			evidence = append(evidence, e)
		}
	}
	return evidence
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
	var objects uint32
	err := s.get(nftMessage(unix.NFT_MSG_GETTABLE), body, func(m []byte) {
		objects, _ = be32(attribute(nftAttributes(m), unix.NFTA_TABLE_USE))
	})
	if found, why := judgeNft(err); found != Yes {
		return found, why
	}
	services, err := readServiceMap(s, fam, f)
	detail := fmt.Sprintf("table %s %s with %d chains and sets", fam.name, nftTable, objects)
	if err != nil {
		f.markIncomplete(fam)
		return Yes, fmt.Sprintf("%s; could not read map %s: %v", detail, serviceMap, err)
	}
	return Yes, fmt.Sprintf("%s, %d TCP service addresses", detail, services)
}

// readServiceMap adds the TCP addresses of the map, and counts them. A table
// without the map serves nothing.
func readServiceMap(s *netlinkSocket, fam family, f *frontends) (n int, err error) {
	body := appendString(nftBody(fam), unix.NFTA_SET_ELEM_LIST_TABLE, nftTable)
	body = appendString(body, unix.NFTA_SET_ELEM_LIST_SET, serviceMap)
	err = retryInterrupted(func() error {
		n = 0
		return s.dump(nftMessage(unix.NFT_MSG_GETSETELEM), body, func(m []byte) {
			for _, element := range attributes(attribute(nftAttributes(m), unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				if a, proto, ok := parseServiceKey(nested(element, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE), fam); !ok {
					f.markIncomplete(fam)
				} else if proto == unix.IPPROTO_TCP {
					f.add(a)
					n++
				}
			}
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return n, err
}

// parseServiceKey reads a key of the map: address, protocol and port, each
// filled up to four bytes, all in network byte order.
func parseServiceKey(key []byte, fam family) (a netip.AddrPort, proto uint8, ok bool) {
	n := fam.addrLen
	if len(key) != n+8 {
		return netip.AddrPort{}, 0, false
	}
	addr, _ := netip.AddrFromSlice(key[:n])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(key[n+4:])), key[n], true
}

// lookAtChains looks for the chains of kube-proxy's iptables mode, kept by
// iptables-nft.
func lookAtChains(s *netlinkSocket, fam family, f *frontends) (Answer, string) {
	var found []string
	for _, want := range nftChains {
		body := appendString(nftBody(fam), unix.NFTA_CHAIN_TABLE, want.table)
		body = appendString(body, unix.NFTA_CHAIN_NAME, want.chain)
		var uses uint32
		err := s.get(nftMessage(unix.NFT_MSG_GETCHAIN), body, func(m []byte) {
			uses, _ = be32(attribute(nftAttributes(m), unix.NFTA_CHAIN_USE))
		})
		there, why := judgeNft(err)
		switch {
		case there == Unknown:
			return there, why
		case there == No:
			continue
		}
		name := want.table + " " + want.chain
		if want.table == "nat" && want.chain == servicesChain {
			name += " (" + readServicesChain(s, fam, f, uses) + ")"
		}
		found = append(found, name)
	}
	if len(found) == 0 {
		return No, "none"
	}
	return Yes, strings.Join(found, ", ")
}

// readServicesChain adds the TCP addresses that a rule sends to a Service's
// chain. uses is the kernel's count of the chain's rules and of the jumps to
// it: without a jump no packet ever comes here.
func readServicesChain(s *netlinkSocket, fam family, f *frontends, uses uint32) string {
	body := appendString(nftBody(fam), unix.NFTA_RULE_TABLE, "nat")
	body = appendString(body, unix.NFTA_RULE_CHAIN, servicesChain)
	var addrs []netip.AddrPort
	var rules uint32
	unclear := 0
	err := retryInterrupted(func() error {
		addrs, rules, unclear = addrs[:0], 0, 0
		return s.dump(nftMessage(unix.NFT_MSG_GETRULE), body, func(m []byte) {
			rules++
			r := parseNftRule(attribute(nftAttributes(m), unix.NFTA_RULE_EXPRESSIONS), fam)
			switch {
			case !isServiceChain(r.target):
			case !r.exact():
				unclear++
			case r.proto == unix.IPPROTO_TCP:
				addrs = append(addrs, netip.AddrPortFrom(r.addr, r.port))
			}
		})
	})
	if err != nil {
		f.markIncomplete(fam)
		return "could not read its rules: " + err.Error()
	}
	return addFromChain(f, fam, addrs, unclear, uses > rules)
}

// addFromChain adds what KUBE-SERVICES of either kind of iptables leads to.
func addFromChain(f *frontends, fam family, addrs []netip.AddrPort, unclear int, hooked bool) string {
	if !hooked {
		return "nothing jumps to it"
	}
	for _, a := range addrs {
		f.add(a)
	}
	detail := fmt.Sprintf("%d TCP service addresses", len(addrs))
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

// retryInterrupted repeats a dump that kube-proxy has written into.
func retryInterrupted(dump func() error) (err error) {
	for range 3 {
		if err = dump(); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}
