package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// newerHelpers are the helpers that the programs call although the floor
// (5.3, RHEL 8.2) lacks them, and the feature that says whether they exist.
func newerHelpers(f Features) map[asm.BuiltinFunc]bool {
	return map[asm.BuiltinFunc]bool{
		asm.FnGetNetnsCookie: f.NetnsCookie,
		asm.FnSetRetval:      f.SetRetval,
	}
}

// contextSock is the offset of sk in struct bpf_sock_addr. Nothing else that programs read by a register has eight bytes
// there.
const contextSock = 64

// isContextSock reports whether an instruction loads the socket of the context.
func isContextSock(ins asm.Instruction) bool {
	op := ins.OpCode
	return op.Class().IsLoad() && op.Mode() == asm.MemMode && op.Size() == asm.DWord && ins.Offset == contextSock
}

// substitute replaces each call of a helper that the kernel lacks by "r0 = 0",
// and each load of the context's socket by a zero where the kernel does not give it: the programs
// take that for a socket that is bound to nothing.
//
// A constant that guards the call would not do: before 5.5 the verifier looks
// into dead branches too. Objects of their own for each combination would be a
// matrix. The library does the same for bpf_probe_read_kernel.
func substitute(prog *ebpf.ProgramSpec, f Features) error {
	for i := range prog.Instructions {
		if ins := &prog.Instructions[i]; isContextSock(*ins) && !f.ContextSock {
			*ins = asm.Mov.Imm(ins.Dst, 0).WithMetadata(ins.Metadata)
		}
	}
	newer := newerHelpers(f)
	return replaceCalls(prog, func(fn asm.BuiltinFunc) bool {
		have, known := newer[fn]
		return known && !have
	})
}

// replaceCalls replaces each call of a helper for which lacks reports true by "r0 = 0".
func replaceCalls(prog *ebpf.ProgramSpec, lacks func(asm.BuiltinFunc) bool) error {
	for i := range prog.Instructions {
		ins := &prog.Instructions[i]
		if !ins.IsBuiltinCall() || !lacks(asm.BuiltinFunc(ins.Constant)) {
			continue
		}
		zero := asm.Mov.Imm(asm.R0, 0).WithMetadata(ins.Metadata)
		if zero.Size() != ins.Size() {
			return fmt.Errorf("replace call of %v in %s: sizes differ", asm.BuiltinFunc(ins.Constant), prog.Name)
		}
		*ins = zero
	}
	return nil
}
