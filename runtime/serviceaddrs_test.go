package runtime

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/lab"
)

// A runtime that nobody gave addresses, and that has none saved, finds the Service IP in the table.
func TestServiceAddrsWithoutSavedState(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	server := netip.MustParseAddrPort("192.0.2.11:6443")
	for _, tc := range []struct {
		name, server string
		services     []nat.Service
		claim        bool // a former runtime has granted the API server's address to another Service
		want         string
	}{
		{"the kubeconfig has the Service IP", "https://10.96.0.1:443", []nat.Service{seeded("api", "10.96.0.1:443", "192.0.2.11:6443"), seeded("extra", "10.96.0.20:443", "192.0.2.11:6443")}, false, "[10.96.0.1:443]"},
		{"without its port", "https://10.96.0.1", []nat.Service{seeded("api", "10.96.0.1:443", "192.0.2.11:6443")}, false, "[10.96.0.1:443]"},
		{"the kubeconfig has an API server", "https://192.0.2.11:6443", []nat.Service{seeded("api", "10.96.0.1:443", "192.0.2.11:6443")}, false, "[10.96.0.1:443]"},
		{"which another Service claims", "https://192.0.2.11:6443", []nat.Service{seeded("api", "10.96.0.1:443", "192.0.2.11:6443")}, true, "[10.96.0.1:443]"},
		{"a name, and nothing tells the seeded Services apart", "https://api.example:6443", []nat.Service{seeded("api", "10.96.0.1:443", "192.0.2.11:6443"), seeded("extra", "10.96.0.20:443", "192.0.2.11:6443")}, false, "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := lab.New(t)
			seedLab(t, l, tc.services...)
			cfg := labConfig(l)
			d := openDataplane(t, cfg)
			defer d.Close()
			if tc.claim {
				state, err := d.Store().Read()
				if err != nil {
					t.Fatal(err)
				}
				p := nat.NewPlanner(state, nat.RuntimeIndexes)
				if err := p.Ensure(nat.Service{Name: "evil", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(server, bpf.TCP)}, Backends: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.66:6443")}}); err != nil {
					t.Fatal(err)
				}
				if _, err := nat.Apply(d.Store(), p.Plan()); err != nil {
					t.Fatal(err)
				}
			}
			got, err := (&run{cfg: cfg, data: d}).serviceAddrs(tc.server)
			if err != nil || fmt.Sprint(got) != tc.want {
				t.Errorf("%v (%v), want %s", got, err, tc.want)
			}
			if d.IsService(server) {
				t.Error("an API server is taken for a Service")
			}
		})
	}
}

// What an image brings along from another machine is not believed, as by init.
func TestServiceAddrsOfAnotherMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := lab.New(t)
	seedAPI(t, l)
	cfg := labConfig(l)
	cfg.Services = nil
	d := openDataplane(t, cfg)
	defer d.Close()
	root := t.TempDir()
	id := filepath.Join(root, "etc/machine-id")
	saved := netip.MustParseAddrPort("10.97.0.1:443")
	if err := errors.Join(os.Mkdir(filepath.Dir(id), 0o755), os.WriteFile(id, []byte("0123456789abcdef0123456789abcdef\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	here := apiserver.MachineOf(root)
	for _, tc := range []struct {
		of   apiserver.Machine
		used bool
	}{{here, true}, {apiserver.Machine{ID: "another"}, false}} {
		at := *cfg
		at.HostRoot, at.StateDir = root, t.TempDir()
		if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: at.StateDir}, &apiserver.Known{
			Services: []netip.AddrPort{saved}, Machine: tc.of,
			Endpoints: []apiserver.KnownEndpoint{{Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:6443")}}},
		}); err != nil {
			t.Fatal(err)
		}
		got, err := (&run{cfg: &at, data: d}).serviceAddrs("")
		if used := slices.Contains(got, saved); err != nil || used != tc.used {
			t.Errorf("saved on %+v: %v, error %v", tc.of, got, err)
		}
	}
}
