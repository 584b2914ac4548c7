package nat

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/firsthop/firsthop/bpf"
)

// A hash map's element can't be changed by the update of its key: the kernel
// puts a new element before the former one and frees that. A program that walks
// the bucket's list at that time may miss both (it has passed the head, and the
// former element is gone when it gets there), and from Linux 6.1 on the freed
// memory may get the next element that is written, whatever its key, while a
// program still reads it. So each such update would have to be followed by a
// grace period, and the miss would remain.
//
// A program may write to an element where it is, by one aligned 8-byte store. So
// a small one does that, run by the writer (BPF_PROG_TEST_RUN, Linux 4.12) and
// attached nowhere.

// errGone says that a frontend that is to be changed isn't in the table.
var errGone = errors.New("it isn't there any more")

// What the changer returns; 0 stands for not having run: before Linux 5.13
// (kernel commit 607b9cc92bd7) a signal may end BPF_PROG_TEST_RUN before that.
const (
	changed = iota + 1
	changeUnread
	changeGone
)

// changeSize is the changer's input: a value of 8 bytes, a key of 20.
const changeSize = 28

// ethernet is how much of the input BPF_PROG_TEST_RUN takes for a header.
const ethernet = 14

// newChanger loads the program that changes frontends. It is a socket filter, as
// those need least rights and are run by BPF_PROG_TEST_RUN on all kernels.
func newChanger(frontends *ebpf.Map) (*ebpf.Program, error) {
	const value, key = -32, -24 // on the stack
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fh_change", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, value),
			asm.Mov.Imm(asm.R4, changeSize),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "unread"),

			asm.LoadMapPtr(asm.R1, frontends.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "gone"),

			asm.LoadMem(asm.R1, asm.RFP, value, asm.DWord),
			asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, changed),
			asm.Return(),

			asm.Mov.Imm(asm.R0, changeUnread).WithSymbol("unread"),
			asm.Return(),
			asm.Mov.Imm(asm.R0, changeGone).WithSymbol("gone"),
			asm.Return(),
		},
	})
}

// ChangeFrontends implements Store.
func (k *Kernel) ChangeFrontends(keys []bpf.FrontendKey, values []bpf.Frontend) error {
	if len(keys) == 0 {
		return nil
	}
	changer, err := newChanger(k.maps.Map(bpf.MapFrontend))
	if err != nil {
		return fmt.Errorf("load the program that changes frontends: %w", err)
	}
	defer changer.Close()
	for i, key := range keys {
		if err := changeOne(changer, key, values[i]); err != nil {
			return fmt.Errorf("change frontend %v: %w", key, err)
		}
	}
	return nil
}

func changeOne(changer *ebpf.Program, key bpf.FrontendKey, fe bpf.Frontend) error {
	in := make([]byte, ethernet, ethernet+changeSize)
	in, err := binary.Append(in, binary.NativeEndian, fe)
	if err != nil {
		return err
	}
	if in, err = binary.Append(in, binary.NativeEndian, key); err != nil {
		return err
	}
	got, err := changer.Run(&ebpf.RunOptions{Data: in})
	for range 100 {
		if err != nil || got != 0 {
			break
		}
		got, err = changer.Run(&ebpf.RunOptions{Data: in})
	}
	switch {
	case err != nil:
		return err
	case got == changeGone:
		return errGone
	case got != changed:
		return fmt.Errorf("the program that changes frontends says %d", got)
	}
	return nil
}
