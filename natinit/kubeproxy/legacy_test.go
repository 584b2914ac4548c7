package kubeproxy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestLegacyTable reads what a kernel handed out for ip4Rules and
// ip6Rules, so that the layout is checked without root too. The file is
// written anew by a test run with FIRSTHOP_UPDATE set.
func TestLegacyTable(t *testing.T) {
	for _, test := range []struct {
		fam    family
		layout legacyLayout
		rules  string
		want   string
	}{
		{ip4, layout4, ip4Rules, "10.96.0.1:443"},
		{ip6, layout6, ip6Rules, "[fd00:96::1]:443"},
	} {
		t.Run(test.fam.name, func(t *testing.T) {
			file := filepath.Join("testdata", "legacy-nat-"+test.fam.name)
			if os.Getenv("FIRSTHOP_UPDATE") != "" {
				n := newNode(t)
				n.run(test.rules, map[family]string{ip4: "iptables-legacy-restore", ip6: "ip6tables-legacy-restore"}[test.fam])
				var table legacyTable
				err := n.lab.Do(func() error {
					s, err := openLegacy(test.fam)
					if err == nil {
						table, err = s.read("nat")
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				defer table.close()
				mustWrite(t, file, string(table.entries))
			}
			entries, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// The built-in chains are in the order of the hooks: PREROUTING
			// first, at 0, and a rule each.
			table := legacyTable{layout: test.layout, hooks: map[int]bool{0: true}, entries: entries}
			rules, err := table.parse()
			if err != nil {
				t.Fatal(err)
			}
			f := newFrontends(true, nil)
			addFromChain(&f, test.fam, rules.rules, rules.hooked)
			if len(f.served) != 1 || !f.served[netip.MustParseAddrPort(test.want)] {
				t.Errorf("serves %v, want %v", f.served, test.want)
			}
			if !rules.found[0] || f.incomplete4 || f.incomplete6 {
				t.Errorf("got %+v", rules)
			}
		})
	}
}

func FuzzLegacyTable(f *testing.F) {
	for _, name := range []string{"legacy-nat-ip", "legacy-nat-ip6"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint32(0), name == "legacy-nat-ip6")
		f.Add(data[:len(data)-7], uint32(1), name == "legacy-nat-ip6")
	}
	f.Fuzz(func(t *testing.T, b []byte, hook uint32, v6 bool) {
		table := legacyTable{layout: layout4, hooks: map[int]bool{int(hook): true}, entries: b}
		if v6 {
			table.layout = layout6
		}
		rules, err := table.parse()
		if err == nil && len(rules.rules) > len(b)/table.layout.size {
			t.Errorf("%d rules in %d bytes", len(rules.rules), len(b))
		}
	})
}
