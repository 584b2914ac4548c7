package diagnose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/proof"
)

// The checks of the dataplane itself: pins, programs, table, and whether it works.

func (d *doctor) pins(context.Context) Finding {
	if d.mount.Err() != nil {
		return unseen("the pins", d.mount.Err())
	}
	pins := d.node.pins()
	if err := attach.CheckPins(pins, bpf.Hooks()); err != nil {
		return fail("move away what is named, if nothing needs it; then "+runInit, "%s", err)
	}
	unknown, loose, err := unknownPins(pins)
	st, statErr := os.Stat(pins.Dir)
	switch {
	case errors.Is(statErr, fs.ErrNotExist):
		return fail(runInit, "nothing is pinned: %s is not there", pins.Dir)
	case err != nil || statErr != nil:
		return fail("run it as root", "the pins can't be listed: %s", errors.Join(err, statErr))
	case len(unknown) > 0:
		return warn("move away what is named, if nothing needs it", "%d things in our directories are not ours", len(unknown)).because(unknown...)
	case st.Mode().Perm() != 0o700:
		return warn("chmod 0700 "+pins.Dir, "%s has mode %04o: others than root may get at the table", pins.Dir, st.Mode().Perm())
	case len(loose) > 0:
		return warn(runInit, "a run that was killed has left %d pins", len(loose)).because(loose...)
	}
	pinned, _ := natinit.Pinned(pins)
	return ok("%d pins below %s, all ours", len(pinned), pins.Dir)
}

// unknownPins are what stands in our directories and is not ours by its name, and
// what is on its way to its place.
func unknownPins(pins bpf.Pins) (unknown, loose []string, err error) {
	known := map[string]bool{pins.Dir: true, pins.Maps(): true, pins.Links(): true, pins.Progs(): true}
	for _, pin := range pins.AllMapPins() {
		known[pin] = true
	}
	for _, h := range bpf.Hooks() {
		known[filepath.Join(pins.Links(), h.Name)] = true
		known[filepath.Join(pins.Progs(), h.Name)] = true
	}
	err = filepath.WalkDir(pins.Dir, func(path string, _ fs.DirEntry, err error) error {
		_, _, layout := bpf.ParseMapPin(filepath.Base(path))
		before, next := strings.CutSuffix(path, "_new")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile
		case err != nil:
			return err
		case known[path], layout && filepath.Dir(path) == pins.Maps(): // of another layout: for the next check
		case next && known[before]:
			loose = append(loose, path)
		default:
			unknown = append(unknown, path)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return unknown, loose, err
}

func (d *doctor) layout(context.Context) Finding {
	switch {
	case errors.Is(d.mapsErr, bpf.ErrNewerLayout):
		return fail("use the newer firsthop, or uninstall with it first", "%s", d.mapsErr)
	case errors.Is(d.mapsErr, bpf.ErrForeign):
		return fail("move away what is named, if nothing needs it; then "+runInit, "%s", d.mapsErr)
	case d.mapsErr != nil:
		return fail(runInit, "%s", d.mapsErr)
	}
	var missing []string
	for _, name := range bpf.MapNames() {
		if d.maps.Map(name) == nil {
			missing = append(missing, name.Info().Pin())
		}
	}
	if len(missing) > 0 {
		return warn(runInit+", or a restart of the runtime", "a former version made the table, which had no %s: what needs them doesn't work", strings.Join(missing, ", "))
	}
	if others, err := bpf.OtherLayouts(d.node.pins()); err == nil && len(others) > 0 {
		return warn("rm them, once no other version of firsthop serves by them", "there are pins of another layout").because(others...)
	}
	return ok("layout %d, all %d maps are there", bpf.LayoutVersion, len(bpf.MapNames()))
}

// attachedSettings are those that the attached programs were loaded with.
func (d *doctor) attachedSettings() (s bpf.Settings, attached bool, err error) {
	for _, h := range d.hooks {
		if h.Attached && strings.HasPrefix(h.Hook, "connect") {
			s, err = settingsOf(h.Program, d.maps)
			return s, true, err
		}
	}
	return s, false, nil
}

func (d *doctor) hooksAttached(context.Context) Finding {
	if d.hooksErr != nil {
		return unseen("the hooks", d.hooksErr)
	}
	settings, attached, err := d.attachedSettings()
	switch {
	case err != nil:
		return unseen("the attached programs", err)
	case !attached && d.off():
		return ok("nothing is attached, by --scope off")
	}
	var elsewhere []string
	for _, h := range d.hooks {
		if h.CgroupID != 0 && h.CgroupID != d.cgroup.ID {
			elsewhere = append(elsewhere, fmt.Sprintf("%s is attached to the cgroup with id %d", h.Hook, h.CgroupID))
		}
	}
	if len(elsewhere) > 0 {
		return fail(runInit, "%d programs are not attached to %s (id %d)", len(elsewhere), d.cgroup.HostPath, d.cgroup.ID).because(elsewhere...)
	}
	b := bpf.Balancer{UDP: !attached || settings.Flags&bpf.SettingsUDP != 0, HostOnly: settings.Flags&bpf.SettingsHostScope != 0}
	if settings.HostNetns != math.MaxUint64 {
		b.HostNetns = settings.HostNetns
	}
	if d.kernErr != nil {
		return unseen("the hooks that this kernel has", d.kernErr)
	}
	plan, err := attach.Plan(attach.Config{Target: attach.Cgroup{Path: d.cgroup.Path}, Programs: attach.Balancer{Balancer: b, Maps: d.maps, Features: d.kern.Features()}})
	if err != nil {
		return unseen("the hooks", err)
	}
	return judgePlan(plan)
}

// judgePlan says what an attach would have to do.
func judgePlan(plan []attach.Result) Finding {
	var missing, old []string
	for _, h := range plan {
		switch h.Change {
		case attach.Added:
			missing = append(missing, h.Hook)
		case attach.Changed, attach.Removed:
			old = append(old, fmt.Sprintf("%s: program %d", h.Hook, h.Program))
		}
	}
	switch {
	case len(missing) > 0:
		return fail(runInit, "not attached, though this kernel has the hook: %s", strings.Join(missing, ", "))
	case len(old) > 0:
		return warn(runInit+", or restart the runtime", "%d attached programs are of another version of firsthop; they serve", len(old)).because(old...)
	}
	return ok("%d programs of this version are attached, one at each hook", len(plan))
}

func (d *doctor) others(context.Context) Finding {
	if d.hooksErr != nil {
		return unseen("the hooks", d.hooksErr)
	}
	beside := d.node.others()
	if hook, program := bootstrap.Rival(d.hooks); hook != "" {
		return fail("use that one's --bpffs, or uninstall it first", "another firsthop serves this cgroup, with another bpffs (%s: program %s): of two, only the first is effective", hook, program)
	}
	if d.kernErr == nil {
		conflicts, err := attach.Conflicts(d.cgroup.Path, d.kern.Features(), d.Proc)
		if err != nil {
			return unseen("the programs of others", err)
		}
		if len(conflicts) > 0 {
			return fail("have its owner attach it with BPF_F_ALLOW_MULTI, or remove it", "a program of somebody else keeps ours out: %s", conflicts[0])
		}
	}
	if len(beside) > 0 {
		return warn("ask its owner whether it changes addresses; the check proof says whether connections get through now", "%d programs of others are at the same hooks, and may change where connections go", len(beside)).because(beside...)
	}
	return ok("no programs of others are at our hooks")
}

func (d *doctor) table(ctx context.Context) Finding {
	if d.state == nil {
		return unseen("the table", d.mapsErr)
	}
	broken, loose := inspectTable(d.state)
	// A copy that is made while another writes may mix two states, and what was
	// replaced goes a little later: what is wrong stays so.
	for try := 0; len(broken)+len(loose) > 0 && try < 3 && ctx.Err() == nil; try++ {
		time.Sleep(100 * time.Millisecond)
		state, err := readState(d.maps)
		if err != nil {
			return unseen("the table", err)
		}
		d.state = state
		stillBroken, stillLoose := inspectTable(state)
		broken, loose = both(broken, stillBroken), both(loose, stillLoose)
	}
	const repair = "restart the runtime, which repairs the table; where none runs, firsthop init"
	switch {
	case len(broken) > 0:
		return fail(repair, "%d entries lead nowhere", len(broken)).because(Few(broken))
	case len(loose) > 0:
		return warn(repair, "%d entries are left over: nothing leads to them", len(loose)).because(Few(loose))
	}
	return ok("%d frontends, %d service states, %d sets, %d source ranges: each leads where it should", len(d.state.Frontends), len(d.state.ServiceStates), len(d.state.Sets), len(d.state.SourceRanges))
}

// both are the texts that two lists have.
func both(a, b []string) []string {
	return slices.DeleteFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// nearlyFull is from how many hundredths on a map is nearly full.
const nearlyFull = 90

func (d *doctor) room(context.Context) Finding {
	if d.state == nil {
		return unseen("the table", d.mapsErr)
	}
	backends := 0
	for _, set := range d.state.Sets {
		backends += len(set)
	}
	indexes := d.state.Indexes()
	ofRuntime := slices.DeleteFunc(slices.Clone(indexes), nat.InitIndexes.Contains)
	var full, seen []string
	for _, m := range []struct {
		what       string
		used, room int
	}{
		{"frontends", len(d.state.Frontends), d.state.Capacity.Frontends},
		{"backends", backends, d.state.Capacity.Backends},
		{"source ranges", len(d.state.SourceRanges), d.state.Capacity.SourceRanges},
		{"Services of the runtime", len(ofRuntime), int(d.state.Services) - int(nat.RuntimeIndexes.First)},
		{"Services of init", len(indexes) - len(ofRuntime), int(nat.InitIndexes.Last)},
	} {
		if m.room <= 0 {
			continue
		}
		text := fmt.Sprintf("%d of %d %s", m.used, m.room, m.what)
		seen = append(seen, text)
		if m.used*100 > m.room*nearlyFull {
			full = append(full, text)
		}
	}
	if len(full) > 0 {
		return warn("let the runtime run: it gives a full table more room. A new table gets it by --max-frontends, --max-services and --max-backends", "the table is nearly full: %s", strings.Join(full, ", ")).because(seen...)
	}
	return ok("there is room: %s", strings.Join(seen, ", "))
}

// sockets looks at the maps in which programs remember sockets. One that forgets what was used longest ago may be full.
func (d *doctor) sockets(context.Context) Finding {
	if d.state == nil {
		return unseen("the maps of sockets", d.mapsErr)
	}
	usage, err := d.maps.Usage(bpf.Features{Batch: true})
	if err != nil { // before Linux 5.6
		usage, err = d.maps.Usage(bpf.Features{})
	}
	if err != nil {
		return unseen("the maps of sockets", err)
	}
	var full, overflowed, seen []string
	for _, u := range usage {
		text := fmt.Sprintf("%d of %d %s", u.Used, u.Size, u.Map)
		seen = append(seen, text)
		if u.Used*100 > u.Size*nearlyFull && !u.LRU {
			full = append(full, text)
		}
		if u.Overflowed > 0 {
			overflowed = append(overflowed, fmt.Sprintf("%d of %d new entries of %s", u.Overflowed, u.Inserted+u.Overflowed, u.Map))
		}
	}
	seen = append(seen, overflowed...)
	switch {
	case len(full) > 0:
		return warn("let the runtime run: it removes what closed sockets have left, and gives such maps more room", "maps of sockets are nearly full: %s", strings.Join(full, ", ")).because(seen...)
	case len(overflowed) > 0:
		return ok("there is room for sockets now; there was none for %s, of which the oldest may be forgotten", strings.Join(overflowed, " and for ")).because(seen...)
	}
	return ok("there is room: %s", strings.Join(seen, ", "))
}

func (d *doctor) backends(ctx context.Context) Finding {
	if d.state == nil {
		return unseen("the table", d.mapsErr)
	}
	indexes := slices.Sorted(maps.Keys(apiIndexes(d.state, d.last, d.StateDir, d.cfg.Runtime)))
	if len(indexes) == 0 {
		return fail(runInit, "the API service is not in the table, or its address is not known any more")
	}
	var endpoints []apiserver.Endpoint
	for _, index := range indexes {
		backends := d.state.Backends(d.state.ServiceStates[bpf.ServiceStateAt(index, false)])
		if len(backends) == 0 {
			return fail(runInit, "the API service has no backend at index %d: %s", index, d.state.FrontendsOf(index))
		}
		for _, b := range backends {
			endpoints = append(endpoints, apiserver.Endpoint{Addr: b})
		}
	}
	direct, err := natinit.OpenDirect(bpf.PinsBelow(d.mount.Path))
	if err != nil {
		return unseen("the table", err)
	}
	defer direct.Close()
	live, seen := 0, []string{}
	var loopback []string
	for _, r := range probe.Endpoints(ctx, endpoints, probe.Config{Strength: probe.Ready, Trust: d.trust(), Dial: direct.DialContext}) {
		if r.Endpoint.Addr.Addr().IsLoopback() {
			loopback = append(loopback, r.Endpoint.Addr.String())
		}
		text := fmt.Sprintf("%s is %s", r.Endpoint, r.State)
		if r.Err != nil {
			text += ": " + r.Err.Error()
		} else {
			text += fmt.Sprintf(" (%.1f ms)", bootstrap.Millis(r.Latency))
		}
		if r.State == apiserver.Live {
			live++
		}
		seen = append(seen, text)
	}
	switch {
	case live == 0:
		return fail("start an API server, or find where they are now: firsthop discover; then "+runInit, "the API service has %s, of which none answers: %s", count(len(seen), "backend"), strings.Join(seen, "; "))
	case live < len(seen):
		return warn("repair it, or let the runtime take it out: firsthop status", "%d of the API service's %d backends don't answer: their share of connections fails", len(seen)-live, len(seen)).because(seen...)
	}
	if len(loopback) > 0 {
		return warn("give init an address of the server that the pods can reach", "the API service leads to %s, which pods can't reach: each has a loopback of its own", strings.Join(loopback, ", ")).because(seen...)
	}
	return ok("the API service has %s, and all answer", count(len(seen), "backend")).because(seen...)
}

func (d *doctor) proof(ctx context.Context) Finding {
	settings, attached, err := d.attachedSettings()
	switch {
	case d.state == nil || d.hooksErr != nil || err != nil:
		return unseen("whether connections get through", errors.Join(d.mapsErr, d.hooksErr, err))
	case !attached && d.off():
		return ok("nothing is attached, by --scope off: another serves the Service addresses")
	}
	if cookie, err := natinit.NetnsCookie(); settings.Flags&bpf.SettingsHostScope != 0 && err == nil && cookie != settings.HostNetns {
		return warn("run it in the host's network namespace", "not tried: only the host's network namespace is served, and this is another")
	}
	conn, err := bootstrap.Connect(ctx, d.cgroup.Path, d.cfg.Binary, kernel.Config{Forbid: d.cfg.Forbid}.IntoCgroup())
	if err != nil {
		return unseen("whether connections get through", err)
	}
	defer conn.Close()
	addrs := d.proofAddrs()
	if len(addrs) == 0 {
		return fail(runInit, "no address of the API service is known")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	trust, asked := d.trust(), proof.Answered
	if trust.Known() {
		asked = proof.Verified
	}
	var proofs []proof.Proof
	for _, a := range addrs {
		p, err := proof.Prover{Sockets: d.maps.Map(bpf.MapSockRevNat), Asked: asked, Trust: trust, Verify: asked == proof.Verified}.Prove(ctx, conn, a)
		if err != nil {
			return unseen("whether connections get through", err)
		}
		proofs = append(proofs, p)
	}
	said := proof.Describe(proofs)
	switch {
	case slices.ContainsFunc(proofs, func(p proof.Proof) bool { return p.Got == "" }):
		return fail(runInit+"; if that fails too, the checks cgroup, hooks and others say what is in the way", "attached, but not effective: %s", said)
	case slices.ContainsFunc(proofs, func(p proof.Proof) bool { return !p.OK }):
		return warn("the check backends says which API servers answer", "connections are led to API servers, which don't answer: %s", said)
	}
	return ok("%s", said)
}

// trust verifies the API servers of this node's cluster; nil if no CA is known.
func (d *doctor) trust() *apiserver.Trust {
	return discover.Identify(discover.Config{Root: d.HostRoot, StateDir: d.StateDir, Pod: d.cfg.Pod, Machine: bootstrap.MachineAt(d.Places)}).Trust
}

// proofAddrs are the addresses of the API service that the table has.
func (d *doctor) proofAddrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, index := range slices.Sorted(maps.Keys(apiIndexes(d.state, d.last, d.StateDir, d.cfg.Runtime))) {
		for _, k := range d.state.FrontendsOf(index) {
			out = append(out, k.AddrPort())
		}
	}
	return out
}
