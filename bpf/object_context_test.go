package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Before 5.8 the verifier takes no load of less than four bytes from some fields of the context (user_port, protocol), and
// the compiler narrows what it may. The registers, and the places on the stack, that hold the context are followed in the
// order of the code: they are saved at the top and never given another meaning.
func TestProgramsReadTheContextInWholeWords(t *testing.T) {
	eachProgram(t, allFeatures(), func(t *testing.T, p *ebpf.ProgramSpec) {
		context := map[asm.Register]bool{asm.R1: true}
		spilled := map[int16]bool{} // by the offset from the frame pointer
		loads := 0
		for it := p.Instructions.Iterate(); it.Next(); {
			ins, op := it.Ins, it.Ins.OpCode
			switch {
			case ins.IsBuiltinCall():
				for r := asm.R0; r <= asm.R5; r++ {
					delete(context, r)
				}
			case op.Class().IsLoad() && op.Mode() == asm.MemMode:
				if context[ins.Src] {
					loads++
					if op.Size() != asm.Word && op.Size() != asm.DWord {
						t.Errorf("at %d: %v: a narrow load from the context", it.Offset, ins)
					}
				}
				if isContextSock(*ins) && !context[ins.Src] {
					t.Errorf("at %d: %v: looks as a load of the context's socket, which may be replaced", it.Offset, ins)
				}
				delete(context, ins.Dst)
				if ins.Src == asm.RFP && spilled[ins.Offset] && op.Size() == asm.DWord {
					context[ins.Dst] = true
				}
			case op.Class().IsStore() && op.Mode() == asm.MemMode && ins.Dst == asm.RFP:
				delete(spilled, ins.Offset)
				if context[ins.Src] && op.Class() == asm.StXClass && op.Size() == asm.DWord {
					spilled[ins.Offset] = true
				}
			case op.Class().IsALU() && op.ALUOp() == asm.Mov && op.Source() == asm.RegSource && context[ins.Src]:
				context[ins.Dst] = true
			case op.Class().IsALU(), op.Class().IsLoad():
				delete(context, ins.Dst)
			}
		}
		if loads == 0 {
			t.Error("no load from the context was seen: the register was lost")
		}
	})
}
