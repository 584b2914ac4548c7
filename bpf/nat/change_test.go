package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// seeker is a program that looks a frontend up, as those of the balancer do, and counts what it sees.
type seeker struct {
	prog *ebpf.Program
	seen *ebpf.Map // 0: lookups, 1: nothing there, 2: neither of the two values
}

func newSeeker(t testing.TB, frontends *ebpf.Map, key bpf.FrontendKey, a, b bpf.Frontend) *seeker {
	t.Helper()
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { seen.Close() })
	raw, err := binary.Append(nil, binary.LittleEndian, key)
	must(t, err)
	state := func(fe bpf.Frontend) int64 { return int64(uint64(fe.Index) | uint64(fe.Flags)<<32) }
	ins := asm.Instructions{
		asm.StoreImm(asm.RFP, -28, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -28),
		asm.LoadMapPtr(asm.R1, seen.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R6, asm.R0),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R6, asm.R1, asm.DWord),
	}
	for i := 0; i < len(raw); i += 4 {
		ins = append(ins, asm.StoreImm(asm.RFP, int16(i-24), int64(int32(binary.LittleEndian.Uint32(raw[i:]))), asm.Word))
	}
	ins = append(ins,
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -24),
		asm.LoadMapPtr(asm.R1, frontends.FD()),
		asm.FnMapLookupElem.Call(),
		asm.Mov.Imm(asm.R1, 1),
		asm.JNE.Imm(asm.R0, 0, "there"),
		asm.Add.Imm(asm.R6, 8),
		asm.StoreXAdd(asm.R6, asm.R1, asm.DWord),
		asm.Ja.Label("out"),
		asm.LoadMem(asm.R2, asm.R0, 0, asm.DWord).WithSymbol("there"),
		asm.LoadImm(asm.R3, state(a), asm.DWord),
		asm.JEq.Reg(asm.R2, asm.R3, "out"),
		asm.LoadImm(asm.R3, state(b), asm.DWord),
		asm.JEq.Reg(asm.R2, asm.R3, "out"),
		asm.Add.Imm(asm.R6, 16),
		asm.StoreXAdd(asm.R6, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "Dual BSD/GPL", Instructions: ins})
	must(t, err)
	t.Cleanup(func() { prog.Close() })
	return &seeker{prog, seen}
}

// seek looks the frontend up many times.
func (s *seeker) seek() error {
	_, err := s.prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 20000})
	return err
}

type sightings struct{ Lookups, Missed, Strange uint64 }

func (s *seeker) sightings(t testing.TB) (out sightings) {
	t.Helper()
	must(t, s.seen.Lookup(uint32(0), &out))
	return out
}

// crowded is a table in which most frontends share their bucket with others: 256 of them in 256 buckets.
func crowded(t testing.TB) (*Kernel, []bpf.FrontendKey, []bpf.Frontend, []bpf.Frontend) {
	t.Helper()
	m, err := bpf.EnsureMaps(bpf.PinsBelow(lab.New(t).BPFFS), bpf.Sizes{Frontends: 256, Services: 1024, Backends: 64})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	k := NewKernel(m, bpf.Features{})
	var keys []bpf.FrontendKey
	var as, bs []bpf.Frontend
	for i := range 256 {
		keys = append(keys, tcp(fmt.Sprintf("10.96.1.%d:80", i)))
		as = append(as, bpf.Frontend{Index: uint32(i + 1)})
		bs = append(bs, bpf.Frontend{Index: uint32(i + 500), Flags: bpf.FrontendLocalPolicy})
	}
	must(t, k.PutFrontends(keys, as))
	return k, keys, as, bs
}

// hammerLookups looks some frontends up while all change between two values for a time.
func hammerLookups(t testing.TB, k *Kernel, keys []bpf.FrontendKey, as, bs []bpf.Frontend, during time.Duration,
	change func([]bpf.FrontendKey, []bpf.Frontend) error) (total sightings, changes int) {
	t.Helper()
	var seekers []*seeker
	for i := 0; i < len(keys); i += 8 {
		seekers = append(seekers, newSeeker(t, k.maps.Map(bpf.MapFrontend), keys[i], as[i], bs[i]))
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for part := range 2 {
		running.Go(func() {
			for i := part; ; i = (i + 2) % len(seekers) {
				select {
				case <-stop:
					return
				default:
				}
				if err := seekers[i].seek(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for end := time.Now().Add(during); changes == 0 || time.Now().Before(end); changes += 2 * len(keys) {
		must(t, errors.Join(change(keys, bs), change(keys, as)))
	}
	close(stop)
	running.Wait()
	for _, s := range seekers {
		one := s.sightings(t)
		total.Lookups += one.Lookups
		total.Missed += one.Missed
		total.Strange += one.Strange
	}
	return total, changes
}

// No program may miss a frontend while it changes, see half of a value, or see another's. With PutFrontends, 94 of 171
// million lookups missed one, and 8 read another's.
func TestChangeFrontendsIsSeenWhole(t *testing.T) {
	k, keys, as, bs := crowded(t)
	got, changes := hammerLookups(t, k, keys, as, bs, 2*time.Second, k.ChangeFrontends)
	t.Logf("%d changes: %+v", changes, got)
	if got.Missed+got.Strange > 0 {
		t.Errorf("%d of %d lookups missed the frontend, %d read a value that it never had", got.Missed, got.Lookups, got.Strange)
	}
	if got.Lookups < 100_000 || changes < 1000 {
		t.Errorf("%d lookups, %d changes: nothing was tested", got.Lookups, changes)
	}
}
