package runtime

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/lab"
)

// A runtime that nobody gave addresses, and that has none saved, finds the Service IP in the table.
func TestServiceAddrsWithoutSavedState(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	api, extra := netip.MustParseAddrPort("10.96.0.1:443"), netip.MustParseAddrPort("10.96.0.20:443")
	server := netip.MustParseAddrPort("192.0.2.11:6443")
	seeded := func(name string, front netip.AddrPort) nat.Service {
		return nat.Service{Name: name, Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(front, bpf.TCP)}, VIPs: []netip.Addr{front.Addr()}, Backends: []netip.AddrPort{server}}
	}
	for _, tc := range []struct {
		name, server string
		services     []nat.Service
		claim        bool // a former runtime has granted the API server's address to another Service
		want         string
	}{
		{"the kubeconfig has the Service IP", "https://10.96.0.1:443", []nat.Service{seeded("api", api), seeded("extra", extra)}, false, "[10.96.0.1:443]"},
		{"without its port", "https://10.96.0.1", []nat.Service{seeded("api", api)}, false, "[10.96.0.1:443]"},
		{"the kubeconfig has an API server", "https://192.0.2.11:6443", []nat.Service{seeded("api", api)}, false, "[10.96.0.1:443]"},
		{"which another Service claims", "https://192.0.2.11:6443", []nat.Service{seeded("api", api)}, true, "[10.96.0.1:443]"},
		{"a name, and nothing tells the seeded Services apart", "https://api.example:6443", []nat.Service{seeded("api", api), seeded("extra", extra)}, false, "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := lab.New(t)
			s, err := natinit.Seed(natinit.SeedConfig{Pins: bpf.PinsBelow(l.BPFFS), Features: bpf.Features(lab.KernelFeatures()), Services: tc.services})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := s.Maps.Close(); err != nil {
				t.Fatal(err)
			}
			cfg := &Config{
				Log: slog.New(slog.NewTextHandler(io.Discard, nil)), BPFFS: l.BPFFS, Cgroup: l.Cgroup, Proc: "/proc", RunDir: t.TempDir(), StateDir: t.TempDir(),
				Scope: natinit.ScopeAll, UDP: true, IgnoreKernelVersion: true,
			}
			d := openDataplane(t, cfg)
			defer d.close()
			if tc.claim {
				state, err := d.store.Read()
				if err != nil {
					t.Fatal(err)
				}
				p := nat.NewPlanner(state, nat.RuntimeIndexes)
				if err := p.Ensure(nat.Service{Name: "evil", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(server, bpf.TCP)}, Backends: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.66:6443")}}); err != nil {
					t.Fatal(err)
				}
				if _, err := nat.Apply(d.store, p.Plan()); err != nil {
					t.Fatal(err)
				}
			}
			got, err := (&run{cfg: cfg, data: d}).serviceAddrs(tc.server)
			if err != nil || fmt.Sprint(got) != tc.want {
				t.Errorf("%v (%v), want %s", got, err, tc.want)
			}
			if d.isService(server) {
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
	seedLab(t, l)
	cfg := labConfig(l, io.Discard)
	cfg.Services = nil
	d := openDataplane(t, cfg)
	defer d.close()
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
