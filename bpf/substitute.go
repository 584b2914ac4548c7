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
	newer := newerHelpers(f)
	for i := range prog.Instructions {
		ins := &prog.Instructions[i]
		if isContextSock(*ins) && !f.ContextSock {
			*ins = asm.Mov.Imm(ins.Dst, 0).WithMetadata(ins.Metadata)
			continue
		}
		if !ins.IsBuiltinCall() {
			continue
		}
		have, known := newer[asm.BuiltinFunc(ins.Constant)]
		if !known || have {
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
