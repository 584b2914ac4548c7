package kubeproxy

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// ipvsDevice carries every Service address in kube-proxy's IPVS mode, so that
// the kernel takes them for its own.
const ipvsDevice = "kube-ipvs0"

// ipvs looks at the device and at the kernel's virtual services. Those count
// as kube-proxy's only where its device is: others use IPVS too.
func (d *Detector) ipvs(f *frontends) []Evidence {
	device := Evidence{Source: SourceDevice, Found: No, Detail: "none"}
	addrs, there, err := deviceAddrs(ipvsDevice)
	switch {
	case err != nil:
		device.Found, device.Detail = Unknown, err.Error()
	case there:
		device.Found, device.Detail = Yes, fmt.Sprintf("device with %d addresses", len(addrs))
	}

	services := Evidence{Source: SourceIPVS, Found: No}
	table, err := os.ReadFile(filepath.Join(d.net, "ip_vs"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && exists(d.net):
		services.Detail = "ip_vs is not loaded"
		if len(addrs) > 0 {
			device.Detail += ", which nothing serves: connections to them end on this node"
		}
	case err != nil:
		services.Found, services.Detail = Unknown, err.Error()
		for _, a := range addrs {
			f.maybe[a] = true
		}
	default:
		services.Found, services.Detail = judgeIPVS(parseIPVS(table), device.Found, f)
	}
	if device.Found == Unknown || services.Found == Unknown && device.Found == Yes {
		f.markIncomplete(ip4)
		f.markIncomplete(ip6)
	}
	if services.Found == Unknown && device.Found == No {
		services.Found, services.Detail = No, "no "+ipvsDevice+", so not kube-proxy's ("+services.Detail+")"
	}
	return []Evidence{device, services}
}

func judgeIPVS(services []virtualService, device Answer, f *frontends) (Answer, string) {
	if len(services) == 0 {
		return No, "no virtual services"
	}
	detail := fmt.Sprintf("%d virtual services", len(services))
	if device != Yes {
		return device, detail + ", not known to be kube-proxy's: no " + ipvsDevice
	}
	for _, s := range services {
		if s.tcp && s.backends > 0 {
			f.add(s.addr)
		}
	}
	return Yes, detail
}

// virtualService is one of IPVS, with its real servers counted.
type virtualService struct {
	addr     netip.AddrPort
	tcp      bool
	backends int // those with a weight: kube-proxy drains others
}

// parseIPVS reads /proc/net/ip_vs (ip_vs_ctl.c, ip_vs_info_seq_show). Services
// known by a firewall mark have no address and are left out, with theirs.
//
//	TCP  0A600001:01BB rr
//	  -> C0000205:192B      Masq    1      0          0
//	TCP  [fd00:0096:0000:0000:0000:0000:0000:0001]:01BB rr
func parseIPVS(table []byte) []virtualService {
	var services []virtualService
	var current *virtualService
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) >= 4 && fields[0] == "->":
			if weight, err := strconv.Atoi(fields[3]); err == nil && weight > 0 && current != nil {
				current.backends++
			}
		case len(fields) >= 2:
			current = nil
			if addr, ok := parseHexAddrPort(fields[1]); ok {
				services = append(services, virtualService{addr: addr, tcp: fields[0] == "TCP"})
				current = &services[len(services)-1]
			}
		}
	}
	return services
}

// parseHexAddrPort reads an IPv4 address in eight hexadecimal digits, or an
// IPv6 address in brackets, and a port in four.
func parseHexAddrPort(s string) (netip.AddrPort, bool) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return netip.AddrPort{}, false
	}
	host := s[:colon]
	port, err := strconv.ParseUint(s[colon+1:], 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	var addr netip.Addr
	if inner, v6 := strings.CutPrefix(host, "["); v6 {
		addr, err = netip.ParseAddr(strings.TrimSuffix(inner, "]"))
	} else {
		var b []byte
		if b, err = hex.DecodeString(host); err == nil {
			addr, _ = netip.AddrFromSlice(b)
		}
	}
	return netip.AddrPortFrom(addr, uint16(port)), err == nil && addr.IsValid()
}

// deviceAddrs reads the addresses of a device by its name. It asks rtnetlink:
// SIOCGIFINDEX would have modprobe look for a driver of that name (dev_ioctl.c,
// dev_load).
func deviceAddrs(name string) (addrs []netip.Addr, there bool, err error) {
	link, err := netlink.LinkByName(name)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look for the device: %w", err)
	}
	var list []netlink.Addr
	for range 5 {
		if list, err = netlink.AddrList(link, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, true, fmt.Errorf("read the device's addresses: %w", err)
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLinkLocalUnicast() {
			addrs = append(addrs, ip.Unmap())
		}
	}
	return addrs, true, nil
}
