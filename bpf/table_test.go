package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// pinTree lists a directory tree with the ids of pinned maps: equal trees are the same objects.
func pinTree(t testing.TB, dir string) map[string]ebpf.MapID {
	t.Helper()
	tree := map[string]ebpf.MapID{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		tree[path] = 0
		if d.Type().IsRegular() {
			if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
				defer m.Close()
				info, err := m.Info()
				if err != nil {
					return err
				}
				tree[path], _ = info.ID()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func sameTree(a, b map[string]ebpf.MapID) bool {
	if len(a) != len(b) {
		return false
	}
	for path, id := range a {
		if other, ok := b[path]; !ok || other != id {
			return false
		}
	}
	return true
}

func TestEnsureMapsTwiceIsOnce(t *testing.T) {
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	first := mustEnsure(t, pins)
	if !slices.Equal(first.Created, MapNames()) {
		t.Errorf("created %v, want all", first.Created)
	}
	before := pinTree(t, l.BPFFS)
	second := mustEnsure(t, pins)
	if len(second.Created) != 0 {
		t.Errorf("the second call created %v", second.Created)
	}
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	meta, err := second.Meta()
	if want := (Meta{ABI: LayoutVersion, Owner: MetaOwner}); err != nil || meta != want {
		t.Errorf("meta is %+v, %v, want %+v", meta, err, want)
	}
	for _, dir := range []string{pins.Dir, pins.Maps()} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, %v, want 0700", dir, st.Mode(), err)
		}
	}
}

func TestEnsureMapsGivesTheSizesAskedFor(t *testing.T) {
	pins := PinsBelow(lab.New(t).BPFFS)
	m := mustEnsure(t, pins)
	for name, want := range map[MapName]uint32{MapFrontend: 64, MapService: 64, MapCounter: 32, MapBackend: 64, MapSockAffinity: 16384} {
		if got := m.Map(name).MaxEntries(); got != want {
			t.Errorf("%s has %d entries, want %d", name, got, want)
		}
	}
	// What exists keeps its size: to "resize" a live map is to lose what it holds.
	again, err := EnsureMaps(pins, Sizes{Frontends: 4096, Services: 4096, Backends: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := again.Map(MapFrontend).MaxEntries(); got != 64 || len(again.Created) != 0 {
		t.Errorf("the existing map has %d entries now, %v were created", got, again.Created)
	}
}

// A killed EnsureMaps leaves the first maps, a killed Discard the last ones. The next call completes either.
func TestEnsureMapsCompletesWhatAKilledRunBegan(t *testing.T) {
	all := MapNames()
	for i := range len(all) + 1 {
		completes(t, all[:i])
		completes(t, all[i:])
	}
}

// completes asks that EnsureMaps takes the maps that are there, and creates the others.
func completes(t *testing.T, there []MapName) {
	t.Helper()
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	specs, err := specs(smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	mustMkdir(t, pins.Dir)
	mustMkdir(t, pins.Maps())
	for _, name := range there {
		mustPinMap(t, pins.Map(name), specs[name])
	}
	former := pinTree(t, l.BPFFS)
	m := mustEnsure(t, pins)
	if len(m.Created)+len(there) != len(MapNames()) || slices.ContainsFunc(m.Created, func(n MapName) bool { return slices.Contains(there, n) }) {
		t.Errorf("%v were there: created %v", there, m.Created)
	}
	now := pinTree(t, l.BPFFS)
	for path, id := range former {
		if now[path] != id {
			t.Errorf("%v were there: %s was map %d, is %d", there, path, id, now[path])
		}
	}
	if meta, err := m.Meta(); err != nil || meta.Owner != MetaOwner {
		t.Errorf("%v were there: meta is %+v, %v", there, meta, err)
	}
}

func TestEnsureMapsCompletesWhatWasKilledBetweenDirectories(t *testing.T) {
	pins := PinsBelow(lab.New(t).BPFFS)
	if err := os.Mkdir(pins.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if m := mustEnsure(t, pins); len(m.Created) != len(MapNames()) {
		t.Errorf("created %v", m.Created)
	}
}

// foreigners are things that somebody else may have put at the place of one of our pins.
var foreigners = map[string]func(t *testing.T, path string){
	"a map of another type": func(t *testing.T, path string) {
		mustPinMap(t, path, &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	},
	"a map with other values": func(t *testing.T, path string) {
		mustPinMap(t, path, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 80, MaxEntries: 1})
	},
	"a program":   pinProgram,
	"a directory": mustMkdir,
	"a directory with something in it": func(t *testing.T, path string) {
		mustMkdir(t, path)
		pinProgram(t, filepath.Join(path, "prog"))
	},
	"a dangling symlink": func(t *testing.T, path string) {
		if err := os.Symlink("nowhere", path); err != nil {
			t.Fatal(err)
		}
	},
}

func mustMkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func mustPinMap(t testing.TB, path string, spec *ebpf.MapSpec) {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
}

func pinProgram(t *testing.T, path string) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect,
		Instructions: proceed(), License: "GPL",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Pin(path); err != nil {
		t.Fatal(err)
	}
}

// Whatever stands at the place of any pin: it is named, it stays, and nothing of ours is left behind.
func TestEnsureMapsNamesForeignThingsAndLeavesThemAlone(t *testing.T) {
	for what, put := range foreigners {
		t.Run(what, func(t *testing.T) {
			l := lab.New(t)
			pins := PinsBelow(l.BPFFS)
			mustMkdir(t, pins.Dir)
			mustMkdir(t, pins.Maps())
			for _, info := range MapTable() {
				for _, path := range pins.MapPins(info.Name) {
					put(t, path)
					before := pinTree(t, l.BPFFS)
					_, err := EnsureMaps(pins, smallSizes)
					if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), path) {
						t.Errorf("at %s: %v, want ErrForeign with the path", path, err)
					}
					if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
						t.Errorf("at %s: before %v, after %v", path, before, after)
					}
					if _, err := OpenMaps(pins, true); err == nil {
						t.Errorf("at %s: the table opens", path)
					}
					os.RemoveAll(path)
				}
			}
		})
	}
}

func TestEnsureMapsRefusesMetaOfAnother(t *testing.T) {
	for _, tc := range []struct {
		name string
		meta Meta
		want error
	}{
		{"another owner", Meta{ABI: LayoutVersion, Owner: 0x12345678}, ErrForeign},
		{"no owner, but a generation", Meta{Generation: 5}, ErrForeign},
		{"an older layout under this layout's name", Meta{ABI: LayoutVersion - 1, Owner: MetaOwner}, ErrForeign},
		{"a newer layout under this layout's name", Meta{ABI: LayoutVersion + 1, Owner: MetaOwner}, ErrNewerLayout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := lab.New(t)
			pins := PinsBelow(l.BPFFS)
			m := mustEnsure(t, pins)
			if err := m.Map(MapMeta).Put(uint32(0), tc.meta); err != nil {
				t.Fatal(err)
			}
			os.Remove(pins.Map(MapSockAffinity)) // what is created on the way must go again
			before := pinTree(t, l.BPFFS)
			if _, err := EnsureMaps(pins, smallSizes); !errors.Is(err, tc.want) {
				t.Errorf("EnsureMaps: %v, want %v", err, tc.want)
			}
			if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
			if got, err := m.Meta(); err != nil || got != tc.meta {
				t.Errorf("meta was overwritten: %+v, %v", got, err)
			}
		})
	}
}

func TestOtherLayouts(t *testing.T) {
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	mustMkdir(t, pins.Dir)
	mustMkdir(t, pins.Maps())
	old := filepath.Join(pins.Maps(), "frontend_v0")
	mustPinMap(t, old, &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 7})
	before := pinTree(t, old)

	m := mustEnsure(t, pins)
	if after := pinTree(t, old); !sameTree(before, after) {
		t.Errorf("the older layout's pin was %v, is %v", before, after)
	}
	if paths, err := OtherLayouts(pins); err != nil || !slices.Equal(paths, []string{old}) {
		t.Errorf("other layouts: %v, %v, want %s", paths, err, old)
	}
	if err := m.Discard(pins); err != nil {
		t.Fatal(err)
	}
	if after := pinTree(t, pins.Maps()); len(after) != 2 {
		t.Errorf("left after Discard: %v, want the older layout's pin", after)
	}

	newer := filepath.Join(pins.Maps(), "backend_v7")
	mustPinMap(t, newer, &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 7})
	if _, err := EnsureMaps(pins, smallSizes); !errors.Is(err, ErrNewerLayout) || !strings.Contains(err.Error(), newer) {
		t.Errorf("with a newer layout: %v, want ErrNewerLayout with %s", err, newer)
	}
	if tree := pinTree(t, pins.Maps()); len(tree) != 3 {
		t.Errorf("left after the refusal: %v, want the two others' pins", tree)
	}
}

func TestDiscardUnpinsOnlyWhatWasPinned(t *testing.T) {
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	m := mustEnsure(t, pins)
	if err := os.Remove(pins.Map(MapSockAffinity)); err != nil {
		t.Fatal(err)
	}
	before := pinTree(t, l.BPFFS)
	second := mustEnsure(t, pins)
	if err := second.Discard(pins); err != nil {
		t.Fatal(err)
	}
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	if err := m.Discard(pins); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(pins.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", pins.Dir, err)
	}
}

func TestOpenMapsNeedsAll(t *testing.T) {
	pins := PinsBelow(lab.New(t).BPFFS)
	if _, err := OpenMaps(pins, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a table: %v, want ErrNotExist", err)
	}
	mustEnsure(t, pins)
	m, err := OpenMaps(pins, true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.PutGeneration(1); !errors.Is(err, unix.EPERM) {
		t.Errorf("write through a read-only handle: %v, want EPERM", err)
	}
	if meta, err := m.Meta(); err != nil || meta.Owner != MetaOwner {
		t.Errorf("read through a read-only handle: %+v, %v", meta, err)
	}
	for _, info := range MapTable() {
		move := func(from, to string) {
			for _, pin := range pins.MapPins(info.Name) {
				if err := os.Rename(pin+from, pin+to); err != nil {
					t.Fatal(err)
				}
			}
		}
		move("", "_moved")
		m, err := OpenMaps(pins, true)
		switch {
		case info.Later && (err != nil || m.Map(info.Name) != nil):
			t.Errorf("without %s, as a former version left it: %v", info.Name, err)
		case info.Later:
			m.Close()
		case !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), info.Pin()):
			t.Errorf("without %s: %v, want ErrNotExist with its name", info.Name, err)
		}
		move("_moved", "")
	}
}

// formerTable are the maps of 49eda8a and what it asks of their pins.
var formerTable = map[string]struct {
	name MapName
	spec ebpf.MapSpec
}{
	"meta_v1":     {MapMeta, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16}},
	"frontend_v1": {MapFrontend, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 8}},
	"service_v1":  {MapService, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8}},
	"backend_v1":  {MapBackend, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 24}},
	"range_v1":    {MapSourceRange, ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 24, ValueSize: 1}},
	"control_v1":  {MapControl, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8}},
	"workload_v1": {MapWorkload, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 40}},
	"affinity_v1": {MapAffinity, ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8}},
	"counter_v1":  {MapCounter, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16}},
	"peer_v1":     {MapSockRevNat, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 48}},
	"reverse_v1":  {MapUDPRevNat, ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 32, ValueSize: 24}},
	"flow_v1":     {MapSockAffinity, ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8}},
}

// putFormerTable pins a table as 49eda8a does.
func putFormerTable(t *testing.T, pins Pins) {
	t.Helper()
	mustMkdir(t, pins.Dir)
	mustMkdir(t, pins.Maps())
	specs, err := specs(smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	for pin, former := range formerTable {
		mustPinMap(t, filepath.Join(pins.Maps(), pin), specs[former.name])
	}
	meta, err := ebpf.LoadPinnedMap(filepath.Join(pins.Maps(), "meta_v1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer meta.Close()
	if err := meta.Put(uint32(0), Meta{ABI: 1, Owner: 0x66686f70, Generation: 7}); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureMapsAdoptsTheFormerTable(t *testing.T) {
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	putFormerTable(t, pins)
	before := pinTree(t, l.BPFFS)
	read, err := OpenMaps(pins, true)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	m := mustEnsure(t, pins)
	since := []MapName{MapNodePorts, MapUDPSockRevNat, MapUDPSockAffinity, MapSockUsage, MapUDPLog} // what that version lacks
	if meta, err := m.Meta(); err != nil || meta.Generation != 7 || !slices.Equal(m.Created, since) {
		t.Errorf("meta is %+v, %v; created %v", meta, err, m.Created)
	}
	now := pinTree(t, l.BPFFS)
	for pin, former := range formerTable {
		id := before[filepath.Join(pins.Maps(), pin)]
		for _, pin := range pins.MapPins(former.name) {
			if now[pin] != id {
				t.Errorf("%s leads to map %d, want %d", pin, now[pin], id)
			}
		}
		for of, m := range map[string]*Maps{"OpenMaps": read, "EnsureMaps": m} {
			if got, err := mapID(m.Map(former.name)); err != nil || got != id {
				t.Errorf("%s: %s is map %d, %v, want %d", of, former.name, got, err, id)
			}
		}
	}
	if err := m.Discard(pins); err != nil { // the proof failed: as if it had never begun
		t.Error(err)
	}
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after Discard %v", before, after)
	}
	mustEnsure(t, pins)
	if err := RemoveMaps(pins); err != nil {
		t.Error(err)
	}
	if after := pinTree(t, pins.Maps()); len(after) != 1 {
		t.Errorf("left after RemoveMaps: %v", after)
	}
}

func TestEnsureMapsPinsWhatTheFormerVersionOpens(t *testing.T) {
	pins := PinsBelow(lab.New(t).BPFFS)
	mustEnsure(t, pins)
	for pin, former := range formerTable {
		m, err := openPinned(filepath.Join(pins.Maps(), pin), &former.spec, false)
		if err != nil {
			t.Errorf("%s: %v", pin, err)
			continue
		}
		defer m.Close()
		if ok, err := PinLeadsTo(pins, former.name, m); err != nil || !ok {
			t.Errorf("the other pin of %s: %v, %v", former.name, ok, err)
		}
	}
}

// The former version does not know the present pin: it grows a table behind it, or repairs its own pin alone.
func TestEnsureMapsFollowsWhatTheFormerVersionExchanged(t *testing.T) {
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	mustEnsure(t, pins)
	specs, err := specs(Sizes{SourceRanges: 1024})
	if err != nil {
		t.Fatal(err)
	}
	larger := filepath.Join(pins.Maps(), "range_v1")
	mustPinMap(t, larger+growSuffix, specs[MapSourceRange])
	if err := os.Rename(larger+growSuffix, larger); err != nil {
		t.Fatal(err)
	}
	want := pinTree(t, larger)[larger]
	read, err := OpenMaps(pins, true)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	for of, m := range map[string]*Maps{"OpenMaps": read, "EnsureMaps": mustEnsure(t, pins)} {
		if got, err := mapID(m.Map(MapSourceRange)); err != nil || got != want {
			t.Errorf("%s opened map %d, %v, want %d", of, got, err, want)
		}
	}
	if got := pinTree(t, pins.Map(MapSourceRange))[pins.Map(MapSourceRange)]; got != want {
		t.Errorf("the present pin leads to map %d, want %d", got, want)
	}
	// One of the two is gone: the other stands for both.
	for _, gone := range pins.MapPins(MapSourceRange) {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
		mustEnsure(t, pins)
		if got := pinTree(t, gone)[gone]; got != want {
			t.Errorf("%s leads to map %d again, want %d", gone, got, want)
		}
	}
}

func TestEnsureDirRefusesDirectoriesOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make directories of others")
	}
	for name, tc := range map[string]struct {
		prepare func(dir string) error
		ok      bool
	}{
		"none there":           {func(string) error { return nil }, true},
		"ours":                 {func(dir string) error { return os.Mkdir(dir, 0o700) }, true},
		"a user's":             {func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 0)) }, false},
		"one that all write":   {func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }, false},
		"a link to a user's":   {func(dir string) error { return os.Symlink(t.TempDir(), dir) }, false},
		"a file":               {func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, false},
		"one that all may see": {func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pins")
			if err := tc.prepare(dir); err != nil {
				t.Fatal(err)
			}
			if err := EnsureDir(dir); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrForeign) {
				t.Errorf("%v, want success %v", err, tc.ok)
			}
		})
	}
}
