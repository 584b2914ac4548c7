package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/apitest"
)

func certain(services Certainty, service string, endpoints Certainty, at ...string) *Known {
	k := &Known{Services: []netip.AddrPort{netip.MustParseAddrPort(service)}, ServicesCertainty: services, EndpointsCertainty: endpoints, Source: "test"}
	for _, a := range at {
		k.Endpoints = append(k.Endpoints, KnownEndpoint{Endpoint: Endpoint{Addr: netip.MustParseAddrPort(a)}})
	}
	return k
}

func saved(t *testing.T, dir string) string {
	t.Helper()
	k, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, e := range k.Endpoints {
		at = append(at, e.String())
	}
	return fmt.Sprintf("%s %s, %s %s", k.ServicesCertainty, k.Services[0].Addr(), k.EndpointsCertainty, strings.Join(at, " "))
}

func TestSaveNeverReplacesWhatIsKnownBetter(t *testing.T) {
	given, said, read := certain(Given, "10.45.0.1:443", Given, "10.0.0.1:1"), certain(Said, "10.46.0.1:443", Said, "10.0.0.2:1"), certain(Configured, "10.47.0.1:443", Configured, "10.0.0.3:1")
	unsure := certain(Unsure, "10.48.0.1:443", Unsure, "10.0.0.4:1")
	retract := func(k *Known) *Known { c := *k; c.Retract = true; return &c }
	for sentence, tc := range map[string]struct {
		was, is *Known
		want    string
	}{
		"given stays, whatever a file says":                      {given, read, "given 10.45.0.1, given 10.0.0.1:1"},
		"given stays, whatever the API says":                     {given, said, "given 10.45.0.1, given 10.0.0.1:1"},
		"given anew replaces given":                              {given, certain(Given, "10.49.0.1:443", Given, "10.0.0.9:1"), "given 10.49.0.1, given 10.0.0.9:1"},
		"given no more, the API's word replaces it":              {given, retract(said), "said 10.46.0.1, said 10.0.0.2:1"},
		"given no more, a file's does not":                       {given, retract(read), "given 10.45.0.1, given 10.0.0.1:1"},
		"what the API said stays, a file's addresses come to it": {said, read, "said 10.46.0.1, said 10.0.0.2:1 10.0.0.3:1"},
		"what the API says replaces what it said":                {said, certain(Said, "10.46.0.1:443", Said, "10.0.0.5:1"), "said 10.46.0.1, said 10.0.0.5:1"},
		"read replaces unsure":                                   {unsure, read, "configured 10.47.0.1, configured 10.0.0.3:1"},
		"each part is judged by itself":                          {certain(Given, "10.45.0.1:443", Configured, "10.0.0.1:1"), said, "given 10.45.0.1, said 10.0.0.2:1"},
	} {
		t.Run(sentence, func(t *testing.T) {
			dir := t.TempDir()
			for _, k := range []*Known{tc.was, tc.is} {
				if _, err := Save(SaveConfig{StateDir: dir}, k); err != nil {
					t.Fatal(err)
				}
			}
			if got := saved(t, dir); got != tc.want {
				t.Errorf("saved is %q, want %q", got, tc.want)
			}
			if wrote, err := Save(SaveConfig{StateDir: dir}, tc.is); wrote || err != nil {
				t.Errorf("the second time it wrote %t, %v", wrote, err)
			}
		})
	}
}

func TestSaveKeepsWhatIsOfAnotherClusterOrMachineAside(t *testing.T) {
	a, b := apitest.NewCA(t), apitest.NewCA(t)
	here, there := Machine{ID: "1", Product: "x"}, Machine{ID: "2", Product: "x"}
	bound := func(k *Known, ca []byte, m Machine) *Known { k.CA, k.Machine = ca, m; return k }
	for sentence, tc := range map[string]struct {
		was   *Known
		aside bool
	}{
		"another cluster":                       {bound(certain(Given, "10.45.0.1:443", Given, "10.0.0.1:1"), b.PEM, here), true},
		"another machine":                       {bound(certain(Given, "10.45.0.1:443", Given, "10.0.0.1:1"), a.PEM, there), true},
		"the same, with a renewed CA":           {bound(certain(Said, "10.45.0.1:443", Said, "10.0.0.1:1"), a.Renew(t).PEM, here), false},
		"one that knows of neither":             {certain(Said, "10.45.0.1:443", Said, "10.0.0.1:1"), false},
		"the same machine-id, another hardware": {bound(certain(Said, "10.45.0.1:443", Said, "10.0.0.1:1"), a.PEM, Machine{ID: "1", Product: "y"}), true},
	} {
		t.Run(sentence, func(t *testing.T) {
			dir := t.TempDir()
			var recorded []string
			cfg := SaveConfig{StateDir: dir, Record: func(kind instance.Kind, target, _ string) error {
				recorded = append(recorded, string(kind)+" "+filepath.Base(target))
				return nil
			}}
			for _, k := range []*Known{tc.was, bound(certain(Said, "10.96.0.1:443", Said, "10.0.0.2:1"), a.PEM, here)} {
				if _, err := Save(cfg, k); err != nil {
					t.Fatal(err)
				}
			}
			if got := saved(t, dir); got != "said 10.96.0.1, said 10.0.0.2:1" {
				t.Errorf("saved is %q", got)
			}
			for _, at := range (hostfs.FS{Root: dir}).Glob("/*") {
				if !slices.Contains(CacheFiles(dir), filepath.Join(dir, at)) {
					t.Errorf("an uninstall does not know of %s", at)
				}
			}
			_, err := os.Stat(CachePath(dir) + ".other-cluster")
			if aside := err == nil; aside != tc.aside || strings.Contains(fmt.Sprint(recorded), "other-cluster") != aside {
				t.Errorf("kept aside: %t, recorded %q", aside, recorded)
			}
			k, err := Load(dir)
			if err != nil || k.Foreign(here, &Trust{CA: a.PEM}) != "" || k.Foreign(there, nil) == "" || k.Foreign(here, &Trust{CA: b.PEM}) == "" {
				t.Errorf("it is bound to nothing: %+v, %v", k, err)
			}
		})
	}
}

// A container without the host's /sys sees less of the machine than the host: they do not write by turns.
func TestSaveKeepsWhatIsKnownOfTheMachine(t *testing.T) {
	cfg := SaveConfig{StateDir: t.TempDir()}
	for i, m := range []Machine{{ID: "1"}, {ID: "1", Product: "x"}, {ID: "1"}, {Product: "x"}, {}} {
		k := certain(Said, "10.96.0.1:443", Said, "10.0.0.1:6443")
		k.Machine = m
		wrote, err := Save(cfg, k)
		if err != nil || wrote != (i < 2) {
			t.Errorf("%+v: wrote %t, error %v", m, wrote, err)
		}
	}
	if k, err := Load(cfg.StateDir); err != nil || k.Machine != (Machine{ID: "1", Product: "x"}) {
		t.Errorf("saved for %+v, error %v", k.Machine, err)
	}
}

// The first format is read, and what is written is read by those who know no
// more than that: their checksum is over their fields alone.
func TestCacheIsReadByEarlierVersionsAndReadsTheirs(t *testing.T) {
	dir := t.TempDir()
	k := certain(Given, "10.96.0.1:443", Said, "10.0.0.1:6443")
	k.CA, k.Machine = apitest.NewCA(t).PEM, Machine{ID: "1"}
	if _, err := Save(SaveConfig{StateDir: dir}, k); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(CachePath(dir))
	if err != nil {
		t.Fatal(err)
	}
	var first struct { // as of the first version
		Format    int                 `json:"format"`
		SavedAt   time.Time           `json:"saved_at"`
		Source    string              `json:"source"`
		Services  []netip.AddrPort    `json:"services"`
		Endpoints []cacheEndpointJSON `json:"endpoints"`
		SHA256    string              `json:"sha256,omitempty"`
	}
	if err := json.Unmarshal(b, &first); err != nil {
		t.Fatal(err)
	}
	sum := first.SHA256
	first.SHA256 = ""
	want, err := sumOf(first)
	if err != nil || sum != want || first.Format != 1 {
		t.Errorf("format %d, checksum %s, an earlier version takes %s, %v", first.Format, sum, want, err)
	}
	first.SHA256 = sum
	old, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	apitest.Write(t, dir, "apiserver.json", string(old))
	if got, err := Load(dir); err != nil || got.ServicesCertainty != Unsure || got.CA != nil || len(got.Endpoints) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, forged := range []string{
		strings.Replace(string(b), `"given"`, `"said"`, 1),
		strings.Replace(string(b), k.Machine.ID+`"`, `2"`, 1),
		strings.Replace(string(b), `10.0.0.1:6443`, `10.0.0.9:6443`, 1),
	} {
		apitest.Write(t, dir, "apiserver.json", forged)
		if _, err := Load(dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("a changed file is believed: %v", err)
		}
	}
}

func TestMachineOf(t *testing.T) {
	root := t.TempDir()
	if m := MachineOf(root); m != (Machine{}) {
		t.Errorf("of nothing: %+v", m)
	}
	apitest.Write(t, root, "/etc/machine-id", "uninitialized\n")
	apitest.Write(t, root, "/sys/class/dmi/id/product_uuid", "03000200-0400-0500-0006-000700080009\n")
	if m := MachineOf(root); m != (Machine{}) {
		t.Errorf("of placeholders: %+v", m)
	}
	apitest.Write(t, root, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	apitest.Write(t, root, "/sys/class/dmi/id/product_uuid", "4C4C4544-0042-3510-8052-B4C04F4D3732\n")
	m := MachineOf(root)
	if m.ID == "" || m.Product == "" || strings.Contains(m.ID, "0123456789") {
		t.Errorf("got %+v", m)
	}
	for sentence, tc := range map[string]struct {
		other Machine
		same  bool
	}{
		"itself": {m, true}, "an unknown one": {Machine{}, true}, "another id": {Machine{ID: "x", Product: m.Product}, false},
		"a clone of the image": {Machine{ID: m.ID, Product: "x"}, false},
	} {
		if got := m.differs(tc.other) == ""; got != tc.same {
			t.Errorf("%s is the same: %t", sentence, got)
		}
	}
}
