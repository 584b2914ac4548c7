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

// substitute replaces each call of a helper that the kernel lacks by "r0 = 0".
//
// A constant that guards the call would not do: before 5.5 the verifier looks
// into dead branches too. Objects of their own for each combination would be a
// matrix. The library does the same for bpf_probe_read_kernel.
func substitute(prog *ebpf.ProgramSpec, f Features) error {
	newer := newerHelpers(f)
	for i := range prog.Instructions {
		ins := &prog.Instructions[i]
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
