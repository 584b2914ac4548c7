package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/apitest"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func ep(s string) Endpoint {
	e, reason := ParseEndpoint(s)
	if reason != "" {
		panic(s + " " + reason)
	}
	return e
}

func known(services, endpoints string) *Known {
	k := &Known{Source: "api"}
	var err error
	if k.Services, err = ParseServices(services); err != nil {
		panic(err)
	}
	eps, err := ParseEndpoints(endpoints)
	if err != nil {
		panic(err)
	}
	for _, e := range eps {
		k.Endpoints = append(k.Endpoints, KnownEndpoint{Endpoint: e})
	}
	return k
}

func at(dir string, now time.Time) SaveConfig {
	return SaveConfig{StateDir: dir, Now: func() time.Time { return now }}
}

func mustSave(t *testing.T, cfg SaveConfig, k *Known) {
	t.Helper()
	if wrote, err := Save(cfg, k); err != nil || !wrote {
		t.Fatalf("Save = %v, %v", wrote, err)
	}
}

func TestSaveThenLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	k := known("10.96.0.1:443,[fd00:96::1]:443", "10.0.0.1:6443,[fd00::1]:6443")
	k.Endpoints = append(k.Endpoints, KnownEndpoint{Endpoint: Endpoint{Host: "api.example", Addr: netip.MustParseAddrPort("10.0.0.9:443")}, LastLive: noon.Add(-time.Hour)})
	mustSave(t, at(dir, noon), k)
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Services, k.Services) || !slices.Equal(got.Endpoints, k.Endpoints) || got.Source != "api" || !got.SavedAt.Equal(noon) {
		t.Errorf("got %+v, want %+v", got, k)
	}
	if a := got.Age(noon.Add(time.Hour)); a != time.Hour {
		t.Errorf("age %v", a)
	}
	if a := got.Age(noon.Add(-time.Hour)); a != 0 {
		t.Errorf("age %v with a clock that went back", a)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, CachePath(dir): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("%s has mode %v, want %v (%v)", path, st.Mode(), want, err)
		}
	}
}

func TestSaveWritesOnlyWhatHasChanged(t *testing.T) {
	for name, tc := range map[string]struct {
		then  *Known
		after time.Duration
		write bool
	}{
		"the same":                            {known("10.96.0.1:443", "10.0.0.1:1,10.0.0.2:1"), time.Hour, false},
		"another order":                       {known("10.96.0.1:443", "10.0.0.2:1,10.0.0.1:1"), time.Hour, false},
		"the same, a day later":               {known("10.96.0.1:443", "10.0.0.1:1,10.0.0.2:1"), CacheRefresh, true},
		"the same, the clock has gone back":   {known("10.96.0.1:443", "10.0.0.1:1,10.0.0.2:1"), -time.Hour, true},
		"one endpoint more":                   {known("10.96.0.1:443", "10.0.0.1:1,10.0.0.2:1,10.0.0.3:1"), time.Hour, true},
		"one endpoint less":                   {known("10.96.0.1:443", "10.0.0.1:1"), time.Hour, true},
		"another endpoint":                    {known("10.96.0.1:443", "10.0.0.1:1,10.0.0.3:1"), time.Hour, true},
		"another Service IP":                  {known("10.97.0.1:443", "10.0.0.1:1,10.0.0.2:1"), time.Hour, true},
		"a name for an address that is there": {&Known{Services: known("10.96.0.1:443", "").Services, Endpoints: []KnownEndpoint{{Endpoint: Endpoint{Host: "a", Addr: netip.MustParseAddrPort("10.0.0.1:1")}}, {Endpoint: ep("10.0.0.2:1")}}}, time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			mustSave(t, at(dir, noon), known("10.96.0.1:443", "10.0.0.1:1,10.0.0.2:1"))
			before, _ := os.Stat(CachePath(dir))
			plan, why, err := PlanSave(at(dir, noon.Add(tc.after)), tc.then)
			if err != nil || plan != tc.write {
				t.Errorf("PlanSave = %v %q %v, want %v", plan, why, err, tc.write)
			}
			if st, _ := os.Stat(CachePath(dir)); !os.SameFile(before, st) {
				t.Error("PlanSave has written")
			}
			wrote, err := Save(at(dir, noon.Add(tc.after)), tc.then)
			if err != nil || wrote != tc.write {
				t.Errorf("Save = %v, %v, want %v", wrote, err, tc.write)
			}
			if st, _ := os.Stat(CachePath(dir)); os.SameFile(before, st) == tc.write {
				t.Errorf("replaced the file: %v, want %v", !os.SameFile(before, st), tc.write)
			}
		})
	}
}

func TestSaveRefusesAnEmptySet(t *testing.T) {
	dir := t.TempDir()
	mustSave(t, at(dir, noon), known("10.96.0.1:443", "10.0.0.1:1"))
	for _, k := range []*Known{{}, known("10.96.0.1:443", ""), known("", "10.0.0.1:1")} {
		if wrote, err := Save(at(dir, noon), k); wrote || !errors.Is(err, ErrEmptySet) {
			t.Errorf("Save(%+v) = %v, %v", k, wrote, err)
		}
	}
	if k, err := Load(dir); err != nil || len(k.Endpoints) != 1 {
		t.Errorf("what was saved is now %v, %v", k, err)
	}
}

func TestDamageIsSeenAndKept(t *testing.T) {
	good := func(t *testing.T) string {
		dir := t.TempDir()
		mustSave(t, at(dir, noon), known("10.96.0.1:443", "10.0.0.1:6443"))
		b, err := os.ReadFile(CachePath(dir))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}(t)
	for name, tc := range map[string]struct{ content, says string }{
		"empty":                      {"", "empty"},
		"zeros, as after power loss": {strings.Repeat("\x00", len(good)), "not JSON"},
		"cut":                        {good[:len(good)/2], "not JSON"},
		"an address changed":         {strings.Replace(good, "10.0.0.1:6443", "10.0.0.2:6443", 1), "checksum"},
		"the time changed":           {strings.Replace(good, "2026", "2027", 1), "checksum"},
		"no checksum":                {strings.Replace(good, "sha256", "md5", 1), "checksum"},
		"no format":                  {strings.Replace(good, `"format"`, `"f"`, 1), "no format version"},
		"format 0":                   {strings.Replace(good, `"format": 1`, `"format": 0`, 1), "no format version"},
		"an array":                   {"[]", "not JSON"},
		"a multicast endpoint":       {strings.Replace(good, "10.0.0.1:6443", "224.0.0.1:6443", 1), "multicast"},
		"rubbish behind":             {good + "x", "not JSON"},
		"too large":                  {good + strings.Repeat(" ", hostfs.MaxFile), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(CachePath(dir), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(dir)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), CachePath(dir)) {
				t.Fatalf("Load says %v, want %q", err, tc.says)
			}
			if b, _ := os.ReadFile(CachePath(dir)); string(b) != tc.content {
				t.Error("Load has changed the file")
			}
			mustSave(t, at(dir, noon), known("10.96.0.1:443", "10.0.0.1:6443"))
			if b, _ := os.ReadFile(CachePath(dir) + ".damaged"); string(b) != tc.content {
				t.Errorf("kept aside: %q", b)
			}
			if _, err := Load(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestANewerFormatIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	const newer = `{"format": 2, "what": "ever"}`
	if err := os.WriteFile(CachePath(dir), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), "it is 2") {
		t.Errorf("Load says %v", err)
	}
	if wrote, err := Save(at(dir, noon), known("10.96.0.1:443", "10.0.0.1:1")); wrote || !errors.Is(err, ErrNewerFormat) {
		t.Errorf("Save = %v, %v", wrote, err)
	}
	if b, _ := os.ReadFile(CachePath(dir)); string(b) != newer {
		t.Errorf("the file is now %q", b)
	}
}

func TestLoadOfNothingIsErrNoCache(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNoCache) {
		t.Errorf("got %v", err)
	}
}

func TestSaveRecordsBeforeItChanges(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var got []string
	cfg := at(dir, noon)
	cfg.Record = func(kind instance.Kind, target, former string) error {
		if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there before it is recorded", target)
		}
		got = append(got, string(kind)+" "+target+" "+former)
		return nil
	}
	mustSave(t, cfg, known("10.96.0.1:443", "10.0.0.1:1"))
	want := []string{"dir " + dir + " ", "file " + CachePath(dir) + " "}
	if !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
	mustSave(t, cfg, known("10.96.0.1:443", "10.0.0.2:1"))
	if len(got) != 2 {
		t.Errorf("recorded our own file again: %q", got)
	}
	refused := errors.New("record is full")
	cfg.StateDir = filepath.Join(t.TempDir(), "other")
	cfg.Record = func(instance.Kind, string, string) error { return refused }
	if _, err := Save(cfg, known("10.96.0.1:443", "10.0.0.1:1")); !errors.Is(err, refused) {
		t.Errorf("Save says %v", err)
	}
	if _, err := os.Lstat(cfg.StateDir); err == nil {
		t.Error("changed what could not be recorded")
	}
}

// A reader never sees anything but a whole file.
func TestReadersAndWritersAtOnce(t *testing.T) {
	dir := t.TempDir()
	mustSave(t, at(dir, noon), known("10.96.0.1:443", "10.0.0.1:1"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := Save(at(dir, noon), known("10.96.0.1:443", fmt.Sprintf("10.0.%d.1:%d", w, i%1000+1))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 300 {
		if _, err := Load(dir); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func FuzzLoad(f *testing.F) {
	b, err := encodeCache(known("10.96.0.1:443,[fd00:96::1]:443", "10.0.0.1:1,api.example:6443"), noon)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1,"services":["10.96.0.1:443"],"endpoints":[{"endpoint":{"address":"10.0.0.1:1"}}],"sha256":""}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"services":[""],"endpoints":[{"endpoint":{}}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		// Get past the checksum, or nothing behind it would be reached.
		var c cacheJSON
		if json.Unmarshal(in, &c) == nil {
			if sum, err := c.sum(); err == nil {
				c.SHA256 = sum
				in, _ = json.Marshal(c)
			}
		}
		k, err := decodeCache(in)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if len(k.Services) == 0 || len(k.Endpoints) == 0 {
			t.Fatal("an empty set was read")
		}
		for _, s := range k.Services {
			apitest.CheckAddr(t, s)
		}
		out, err := encodeCache(k, k.SavedAt)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeCache(out)
		if err != nil || !back.sameAddresses(k) {
			t.Fatalf("written again it is %+v, %v", back, err)
		}
	})
}
