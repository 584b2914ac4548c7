package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/uninstall"
	"github.com/firsthop/firsthop/bpf"
)

// fill writes entries of a Service of the runtime's into a map until it is full.
func (n node) fill(name bpf.MapName, entry func(i uint32) (key, value any)) {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), false)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	for i := uint32(0); ; i++ {
		err := maps.Map(name).Put(entry(i))
		if errors.Is(err, unix.E2BIG) {
			return
		}
		if err != nil {
			n.Fatal(err)
		}
		if name == bpf.MapBackend { // a set that no word names would be collected
			if err := maps.Map(bpf.MapService).Put(bpf.ServiceStateAt(runtimeIndex, false), bpf.ServiceStateOf(runtimeSet, i+1)); err != nil {
				n.Fatal(err)
			}
		}
	}
}

const (
	runtimeIndex = 1500
	runtimeSet   = 1 << 20
)

func TestInitNamesAndKeepsAFullTable(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.serve("two", "127.0.0.2:6443")
	n.init("--max-backends", "1024", "--max-frontends", "1024", "--max-services", "2000")
	for _, tc := range []struct {
		name  string
		full  bpf.MapName
		entry func(i uint32) (key, value any)
		line  []string
	}{
		{"no room for another endpoint", bpf.MapBackend, func(i uint32) (any, any) {
			return bpf.BackendKey{Set: runtimeSet, Slot: i}, bpf.Backend{Port: bpf.PortOf(uint16(i)), ID: i | bpf.BackendMember}
		}, []string{"--endpoints", "127.0.0.2:6443," + server6}},
		{"no room for another Service", bpf.MapFrontend, func(i uint32) (any, any) {
			var k bpf.FrontendKey
			binary.BigEndian.PutUint32(k.Addr[:], i)
			k.Proto = bpf.TCP
			return k, bpf.Frontend{Index: runtimeIndex}
		}, []string{"--extra-service", "tcp/10.96.0.20:80=127.0.0.1:80"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.T = t
			n.fill(tc.full, tc.entry)
			before, state := n.table(), n.state()
			n.run(initArgs(tc.line...)...).exits(bootstrap.ExitAttach).says("full")
			n.stateUnchanged(state)
			before.Generation = n.table().Generation // a set id that was given out stays used
			n.tableUnchanged(before)
			n.checkServes()
			n.run(initArgs()...).exits(0) // nothing to write
		})
	}
}

// pinForeign pins a map of somebody else's.
func (n node) pinForeign(path string) {
	n.Helper()
	for _, dir := range []string{filepath.Dir(filepath.Dir(path)), filepath.Dir(path)} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			n.Fatal(err)
		}
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "somebodys", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		n.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		n.Fatal(err)
	}
}

func TestInitLeavesAloneWhatIsAtItsPins(t *testing.T) {
	meta := func(m bpf.Meta) func(node) {
		return func(n node) {
			n.serving()
			n.init()
			maps, err := bpf.OpenMaps(n.pins(), false)
			if err != nil {
				n.Fatal(err)
			}
			defer maps.Close()
			if err := maps.Map(bpf.MapMeta).Put(uint32(0), m); err != nil {
				n.Fatal(err)
			}
		}
	}
	pins := bpf.PinsBelow("/")
	for _, tc := range []struct {
		name string
		make func(n node)
		code bootstrap.ExitCode
		says []string
	}{
		{"a foreign map at the place of the first map", func(n node) { n.pinForeign(n.BPFFS + pins.Map(bpf.MapMeta)) },
			bootstrap.ExitAttach, []string{pins.Map(bpf.MapMeta), "not firsthop's", "move it away"}},
		{"a foreign map at the place of the last map", func(n node) { n.pinForeign(n.BPFFS + pins.Map(bpf.MapSockAffinity)) },
			bootstrap.ExitAttach, []string{pins.Map(bpf.MapSockAffinity), "not firsthop's", "move it away"}},
		{"a foreign map at the place of a link", func(n node) { n.pinForeign(n.BPFFS + pins.Links() + "/connect4") },
			bootstrap.ExitAttach, []string{pins.Links() + "/connect4", "not firsthop's", "move it away"}},
		{"a map of a newer layout", func(n node) { n.pinForeign(n.BPFFS + pins.Maps() + "/frontend_v2") },
			bootstrap.ExitAttach, []string{"frontend_v2", "layout 2", "newer firsthop"}},
		{"a table of another owner", meta(bpf.Meta{ABI: bpf.LayoutVersion, Owner: 0xbad}),
			bootstrap.ExitAttach, []string{"owner 0xbad", "not firsthop's"}},
		{"a table that says that its layout is newer", meta(bpf.Meta{ABI: bpf.LayoutVersion + 1, Owner: bpf.MetaOwner}),
			bootstrap.ExitAttach, []string{"layout 2", "newer"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			tc.make(n)
			before := n.state()
			for _, line := range [][]string{initArgs(), initArgs("--dry-run")} {
				n.run(line...).exits(tc.code).says(tc.says...)
				n.stateUnchanged(before)
			}
			n.run("uninstall", "--force")
			n.stateUnchanged(before)
		})
	}
}

func TestInitKeepsAnOldLayoutBesideTheNew(t *testing.T) {
	n := newNode(t)
	n.serving()
	old := n.pins().Maps() + "/frontend_v0"
	n.pinForeign(old)
	before := n.state()
	r := n.init()
	for _, s := range r.Steps {
		if s.Step == "seed" && !strings.Contains(strings.Join(s.Warnings, " "), old) {
			t.Errorf("seed warns %q, want a word on %s", s.Warnings, old)
		}
	}
	n.checkServes()
	if at := slices.IndexFunc(before, func(line string) bool { return strings.HasPrefix(line, old+" ") }); at < 0 || !slices.Contains(n.state(), before[at]) {
		t.Errorf("the old map isn't what it was: %q", n.state())
	}
	var list []uninstall.Removal
	n.run("uninstall", "--force", "--dry-run", "-o", "json").exits(0).decode(&list)
	if slices.ContainsFunc(list, func(r uninstall.Removal) bool { return r.Target == old }) {
		t.Error("an uninstall would remove what an older firsthop has pinned")
	}
	n.run("uninstall", "--force").exits(0)
	n.stateUnchanged(before)
}
