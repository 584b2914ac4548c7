package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// floorHelpers are what a program may call on the floor, Linux 5.3 and RHEL 8.2, and which kernel brought each to
// programs of type cgroup_sock_addr.
var floorHelpers = map[asm.BuiltinFunc]string{
	asm.FnMapLookupElem:   "4.17, with the program type",
	asm.FnMapUpdateElem:   "4.17, with the program type",
	asm.FnMapDeleteElem:   "4.17, with the program type",
	asm.FnKtimeGetNs:      "4.17, with the program type",
	asm.FnGetPrandomU32:   "4.17, with the program type",
	asm.FnGetSocketCookie: "4.19, d692f1138a4b",
	asm.FnSpinLock:        "5.1, d83525ca62cf",
	asm.FnMapPushElem:     "4.20, f1a2e44a3aec",
	asm.FnSpinUnlock:      "5.1, d83525ca62cf",
}

func allFeatures() Features {
	return Features{Link: true, Batch: true, NetnsCookie: true, GetPeername: true, SetRetval: true, ContextSock: true}
}

// everyFeatures calls each for every combination.
func everyFeatures(each func(Features)) {
	for bits := range 64 {
		on := func(bit int) bool { return bits&(1<<bit) != 0 }
		each(Features{Link: on(0), Batch: on(1), NetnsCookie: on(2), GetPeername: on(3), SetRetval: on(4), ContextSock: on(5)})
	}
}

func eachProgram(t *testing.T, f Features, each func(t *testing.T, p *ebpf.ProgramSpec)) {
	for name, prog := range mustSpecs(t).Programs {
		t.Run(name, func(t *testing.T) {
			if err := substitute(prog, f); err != nil {
				t.Fatal(err)
			}
			each(t, prog)
		})
	}
}

func TestProgramsCallOnlyHelpersOfTheFloor(t *testing.T) {
	eachProgram(t, Features{}, func(t *testing.T, p *ebpf.ProgramSpec) {
		for _, ins := range p.Instructions {
			if !ins.IsBuiltinCall() {
				continue
			}
			fn := asm.BuiltinFunc(ins.Constant)
			if _, ok := floorHelpers[fn]; !ok {
				t.Errorf("calls %v, which the floor may lack", fn)
			}
		}
	})
}

// A newer helper that substitute doesn't know would pass the test above on a kernel that has it: count those too.
func TestSubstituteKnowsEveryNewerHelper(t *testing.T) {
	used := map[asm.BuiltinFunc]bool{}
	for _, p := range mustSpecs(t).Programs {
		for _, ins := range p.Instructions {
			if ins.IsBuiltinCall() {
				used[asm.BuiltinFunc(ins.Constant)] = true
			}
		}
	}
	newer := newerHelpers(Features{})
	for fn := range used {
		_, floor := floorHelpers[fn]
		if _, known := newer[fn]; floor == known {
			t.Errorf("%v: on the floor %v, substituted %v", fn, floor, known)
		}
	}
	for fn := range newer {
		if !used[fn] {
			t.Errorf("%v is substituted, but nothing calls it", fn)
		}
	}
}

func TestProgramsUseOnlyInstructionsOfTheFloor(t *testing.T) {
	eachProgram(t, Features{}, func(t *testing.T, p *ebpf.ProgramSpec) {
		for it := p.Instructions.Iterate(); it.Next(); {
			checkInstruction(t, it)
		}
		if n := len(p.Instructions); n > 4096 {
			t.Errorf("%d instructions: more than an unprivileged 5.3 takes, and far more than we need", n)
		}
	})
}

// userPort is where user_port is in struct bpf_sock_addr. Nothing else that the programs read has a port there, so the
// register need not be known.
const userPort = 24

func checkInstruction(t *testing.T, it *asm.InstructionIterator) {
	t.Helper()
	ins, op := it.Ins, it.Ins.OpCode
	switch {
	case ins.IsFunctionCall(), ins.IsKfuncCall():
		t.Errorf("at %d: %v: no call but of helpers", it.Offset, ins)
	case ins.IsFunctionReference():
		t.Errorf("at %d: %v: a pointer to a function (5.13)", it.Offset, ins)
	case ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnTailCall:
		t.Errorf("at %d: a tail call", it.Offset)
	case op.Class().IsStore() && op.Mode() == asm.AtomicMode && op.AtomicOp() != asm.AddAtomic:
		// BPF_XADD is the one that is older than 5.12 (kernel commit 5ffa25502b5a).
		t.Errorf("at %d: %v: an atomic operation of 5.12", it.Offset, ins)
	case op.Class().IsLoad() && op.Mode() != asm.MemMode && op.Mode() != asm.ImmMode:
		t.Errorf("at %d: %v: a load of cpu v4, or of packet data", it.Offset, ins)
	case op.Class().IsLoad() && op.Mode() == asm.MemMode && ins.Offset >= userPort && ins.Offset < userPort+4 && op.Size() != asm.Word:
		t.Errorf("at %d: %v: a narrow load of the context's user_port, which 5.3 refuses", it.Offset, ins)
	case op.Class().IsALU():
		checkALU(t, it)
	case op.Class() == asm.Jump32Class && op.JumpOp() == asm.Ja:
		t.Errorf("at %d: %v: a long jump (cpu v4)", it.Offset, ins)
	}
}

// checkALU refuses what cpu v4 (6.6) added: sign-extending moves, signed division, byte swaps that don't care for the
// machine's order.
func checkALU(t *testing.T, it *asm.InstructionIterator) {
	t.Helper()
	ins, op := it.Ins, it.Ins.OpCode
	switch op.ALUOp() {
	case asm.Swap:
		if op.Class() == asm.ALU64Class {
			t.Errorf("at %d: %v: an unconditional byte swap (cpu v4)", it.Offset, ins)
		}
	case asm.Mov, asm.Div, asm.Mod:
		if ins.Offset != 0 {
			t.Errorf("at %d: %v: a sign-extending move or a signed division (cpu v4)", it.Offset, ins)
		}
	case asm.MovSX8, asm.MovSX16, asm.MovSX32, asm.SDiv, asm.SMod:
		t.Errorf("at %d: %v: an instruction of cpu v4", it.Offset, ins)
	}
}

// Loops are what the verifier of the floor is worst at: a 32-bit counter may cost it minutes. The compiler may put a block
// behind the one that jumps to it; as the kernel's check_cfg, this asks for cycles, not for the direction of a jump.
// Linux 5.7 to 5.10 and RHEL 8.3 take a 64-bit value whose bit 31 alone may be set for zero once it was compared, and
// remove what lies behind the next comparison (kernel commit b02709587ea3): affinity never held there.
func TestNoProgramMasksBit31(t *testing.T) {
	eachProgram(t, allFeatures(), func(t *testing.T, p *ebpf.ProgramSpec) {
		for i, ins := range p.Instructions {
			if ins.OpCode.IsDWordLoad() && ins.Constant == 1<<31 {
				t.Errorf("instruction %d loads the 64-bit mask %#x", i, ins.Constant)
			}
		}
	})
}

func TestNoProgramHasALoop(t *testing.T) {
	eachProgram(t, Features{}, func(t *testing.T, p *ebpf.ProgramSpec) {
		next := successors(t, p.Instructions)
		const entered, left = 1, 2
		seen := map[asm.RawInstructionOffset]int{}
		var visit func(at asm.RawInstructionOffset)
		visit = func(at asm.RawInstructionOffset) {
			seen[at] = entered
			for _, to := range next[at] {
				switch seen[to] {
				case entered:
					t.Errorf("a loop from %d to %d", at, to)
				case 0:
					visit(to)
				}
			}
			seen[at] = left
		}
		visit(0)
		if len(seen) != len(p.Instructions) {
			t.Errorf("%d of %d instructions can be reached: the kernel refuses dead code", len(seen), len(p.Instructions))
		}
	})
}

// successors are the instructions that may run after each one, all by their offset.
func successors(t *testing.T, insns asm.Instructions) map[asm.RawInstructionOffset][]asm.RawInstructionOffset {
	t.Helper()
	labels := map[string]asm.RawInstructionOffset{}
	for it := insns.Iterate(); it.Next(); {
		if sym := it.Ins.Symbol(); sym != "" {
			labels[sym] = it.Offset
		}
	}
	next := map[asm.RawInstructionOffset][]asm.RawInstructionOffset{}
	for it := insns.Iterate(); it.Next(); {
		op := it.Ins.OpCode
		jumps := op.Class().IsJump() && op.JumpOp() != asm.Call && op.JumpOp() != asm.Exit
		if op.Class().IsJump() && op.JumpOp() == asm.Exit {
			continue
		}
		if !jumps || op.JumpOp() != asm.Ja {
			next[it.Offset] = append(next[it.Offset], it.Offset+asm.RawInstructionOffset(it.Ins.Size()/asm.InstructionSize))
		}
		if !jumps {
			continue
		}
		to := it.Offset + asm.RawInstructionOffset(1+int(it.Ins.Offset))
		if ref := it.Ins.Reference(); ref != "" {
			label, ok := labels[ref]
			if !ok {
				t.Fatalf("at %d: jumps to %s, which isn't there", it.Offset, ref)
			}
			to = label
		}
		next[it.Offset] = append(next[it.Offset], to)
	}
	return next
}

// Substitution must not move anything: jumps are encoded as distances.
func TestSubstituteKeepsOffsets(t *testing.T) {
	everyFeatures(func(f Features) {
		before := mustSpecs(t).Programs
		for name, p := range mustSpecs(t).Programs {
			if err := substitute(p, f); err != nil {
				t.Fatal(err)
			}
			was, is := before[name].Instructions, p.Instructions
			if len(was) != len(is) {
				t.Fatalf("%s with %+v has %d instructions, had %d", name, f, len(is), len(was))
			}
			for i := range was {
				checkSubstituted(t, name, f, i, was[i], is[i])
			}
		}
	})
}

func checkSubstituted(t *testing.T, name string, f Features, i int, was, is asm.Instruction) {
	t.Helper()
	if was.Size() != is.Size() || was.Symbol() != is.Symbol() || was.Reference() != is.Reference() {
		t.Errorf("%s with %+v: instruction %d was %v (%s), is %v (%s)", name, f, i, was, was.Symbol(), is, is.Symbol())
	}
	lacks := was.IsBuiltinCall() && was.Constant == int64(asm.FnGetNetnsCookie) && !f.NetnsCookie ||
		was.IsBuiltinCall() && was.Constant == int64(asm.FnSetRetval) && !f.SetRetval
	if isContextSock(was) && !f.ContextSock {
		if is.OpCode != asm.Mov.Imm(was.Dst, 0).OpCode || is.Dst != was.Dst || is.Constant != 0 {
			t.Errorf("%s with %+v: instruction %d is %v, want %v = 0", name, f, i, is, was.Dst)
		}
		return
	}
	if !lacks && (was.OpCode != is.OpCode || was.Constant != is.Constant || was.Offset != is.Offset) {
		t.Errorf("%s with %+v: instruction %d was %v, is %v, for no reason", name, f, i, was, is)
	}
	if zero := asm.Mov.Imm(asm.R0, 0); lacks && (is.OpCode != zero.OpCode || is.Dst != asm.R0 || is.Constant != 0) {
		t.Errorf("%s with %+v: instruction %d is %v, want r0 = 0", name, f, i, is)
	}
}
