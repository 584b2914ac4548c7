package apihealth

import (
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/instance"
)

// save writes the addresses as an earlier run would have.
func save(t testing.TB, r *rig, list ...apiserver.Endpoint) {
	t.Helper()
	k := &apiserver.Known{Services: addrs(vip), Source: "test"}
	for _, e := range list {
		k.Endpoints = append(k.Endpoints, apiserver.KnownEndpoint{Endpoint: e})
	}
	if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: r.cfg.StateDir}, k); err != nil {
		t.Fatal(err)
	}
}

func TestSaveWritesLiveServers(t *testing.T) {
	r := newRig(t)
	r.kubeletConf("lb.example:6443", r.ca)
	z := &zone{}
	z.set("lb.example", "192.0.2.13")
	r.cfg.Resolver = z
	save(t, r, endpoints(t, a3+",192.0.2.98:1")...)
	one := r.serve(a1)
	r.serve(a2)
	m := r.run()
	m.SetEndpoints(addrs(a1, a2))
	r.await(a1, a2)
	saves := func(n uint64) func(Status) bool { return func(s Status) bool { return s.Counters.Saves == n } }
	r.until("saved", saves(1))
	want := []string{a1, a2, a3 + " (lb.example)"}
	if got := saved(t, r); !slices.Equal(got, want) {
		t.Errorf("saved are %q, want %q", got, want)
	}
	// Who is down stays in the file: it may be the only one tomorrow.
	one.Close()
	r.await(a2)
	m.mu.Lock()
	m.saveDue = time.Now()
	m.notify()
	m.mu.Unlock()
	r.until("tried again", func(Status) bool { m.mu.Lock(); defer m.mu.Unlock(); return time.Until(m.saveDue) > refreshInterval/2 })
	if got := saved(t, r); !slices.Equal(got, want) || m.Status().Counters.Saves != 1 {
		t.Errorf("saved are %q, %d times", got, m.Status().Counters.Saves)
	}
}

func TestSaveWritesNothingWithoutALiveServer(t *testing.T) {
	r := newRig(t)
	s := r.serve(a1)
	m := r.run()
	m.SetEndpoints(addrs(a1))
	r.await(a1)
	s.Close()
	r.until("dead", func(s Status) bool { return !s.Live })
	m.SetEndpoints(addrs(a2))
	m.mu.Lock()
	m.saveDue = time.Now()
	m.notify()
	m.mu.Unlock()
	r.until("it was due", func(Status) bool { m.mu.Lock(); defer m.mu.Unlock(); return m.saveDue.IsZero() })
	r.end()
	if k, err := apiserver.Load(r.cfg.StateDir); err == nil {
		t.Errorf("saved are %+v", k)
	}
}

func saved(t *testing.T, r *rig) []string {
	t.Helper()
	k, err := apiserver.Load(r.cfg.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range k.Endpoints {
		out = append(out, e.String())
	}
	slices.Sort(out)
	return out
}

func TestSaveLeavesANewerFormatAlone(t *testing.T) {
	r := newRig(t)
	newer := `{"format": 99}`
	if err := os.MkdirAll(r.cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(apiserver.CachePath(r.cfg.StateDir), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	r.serve(a1)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	r.until("refused", func(s Status) bool { return s.Counters.SaveErrors == 1 && s.Counters.LastSaveError != "" })
	if b, err := os.ReadFile(apiserver.CachePath(r.cfg.StateDir)); err != nil || string(b) != newer {
		t.Errorf("now %q, %v", b, err)
	}
}

func TestSaveRecordsEachChangeFirst(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var recorded []string
	r.cfg.Record = func(kind instance.Kind, target, former string) error {
		mu.Lock()
		defer mu.Unlock()
		if _, err := os.Stat(target); err == nil {
			t.Errorf("%s is there before it is recorded", target)
		}
		recorded = append(recorded, string(kind))
		return nil
	}
	r.serve(a1)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	r.until("saved", func(s Status) bool { return s.Counters.Saves == 1 })
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(recorded, []string{"dir", "file"}) {
		t.Errorf("recorded are %q", recorded)
	}
}
