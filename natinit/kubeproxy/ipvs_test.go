package kubeproxy

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ipvsTable is in the form of /proc/net/ip_vs (ip_vs_ctl.c).
const ipvsTable = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr 
  -> C0000205:192B      Masq    1      0          0         
TCP  0A600002:0050 rr persistent 10800 FFFFFFFF
  -> C0000206:1F90      Masq    0      1          0         
TCP  0A600003:0050 rr 
UDP  0A60000A:0035 rr 
  -> C0000207:0035      Masq    1      0          0         
FWM  00000001 rr 
  -> C0000208:0035      Masq    1      0          0         
TCP  [fd00:0096:0000:0000:0000:0000:0000:0001]:01BB rr 
  -> [2001:0db8:0000:0000:0000:0000:0000:0005]:192B      Masq    1      0          0         
`

func TestParseIPVS(t *testing.T) {
	want := []virtualService{
		{netip.MustParseAddrPort("10.96.0.1:443"), true, 1},
		{netip.MustParseAddrPort("10.96.0.2:80"), true, 0}, // drained
		{netip.MustParseAddrPort("10.96.0.3:80"), true, 0},
		{netip.MustParseAddrPort("10.96.0.10:53"), false, 1}, // not that of the firewall mark
		{netip.MustParseAddrPort("[fd00:96::1]:443"), true, 1},
	}
	if got := parseIPVS([]byte(ipvsTable)); !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// The device is real. The kernels of the test machines have no IPVS, so its
// list is a file.
func TestIPVS(t *testing.T) {
	for _, test := range []struct {
		name   string
		device bool
		table  string // "" where ip_vs is not loaded, "-" where it can't be read
		state  State
		served []string
	}{
		{"device and services", true, ipvsTable, LeftOver,
			[]string{"10.96.0.1:443 yes", "[fd00:96::1]:443 yes", "10.96.0.2:80 no", "10.96.0.10:53 no", "10.96.0.4:80 no"}},
		{"device without services", true, strings.Join(strings.SplitAfter(ipvsTable, "\n")[:3], ""), LeftOver,
			[]string{"10.96.0.1:443 no"}},
		{"services of somebody else's", false, ipvsTable, Absent, []string{"10.96.0.1:443 no"}},
		{"device without IPVS", true, "", LeftOver, []string{"10.96.0.1:443 no"}},
		{"device, and services that can't be read", true, "-", LeftOver,
			[]string{"10.96.0.1:443 perhaps yes", "[fd00:96::1]:443 perhaps yes", "10.96.0.9:80 perhaps no"}},
		{"no device, and services that can't be read", false, "-", Absent, []string{"10.96.0.1:443 no"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			if test.device {
				n.addDevice("10.96.0.1/32", "10.96.0.2/32", "fd00:96::1/128")
			}
			d := NewDetector(Config{Proc: n.proc, AnyFrontend: true})
			d.net = t.TempDir()
			switch test.table {
			case "":
			case "-":
				mustWrite(t, filepath.Join(d.net, "ip_vs", "a directory"), "") // unreadable, for root too
			default:
				mustWrite(t, filepath.Join(d.net, "ip_vs"), test.table)
			}
			p := n.detectWith(d)
			if p.State != test.state {
				t.Errorf("state %q, want %q\n%s", p.State, test.state, p)
			}
			checkServed(t, p, test.served...)
		})
	}
}

func FuzzIPVS(f *testing.F) {
	f.Add([]byte(ipvsTable))
	f.Add([]byte("TCP  [fe80::1%eth0]:01BB rr\n  -> x y 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range parseIPVS(b) {
			if !s.addr.IsValid() {
				t.Errorf("not an address: %v", s.addr)
			}
		}
	})
}
