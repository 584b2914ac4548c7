package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bpf(2) by hand. The probes need the exact errno, and each at the least
// cost: a library that asks its own questions first (object names, BTF) and
// turns errors into its own would hide what we want to know.
//
// The attributes hold unsafe.Pointer where the kernel has a __u64: right on
// 64-bit machines, which are the only ones that we build for. The arrays
// below are little-endian, as both amd64 and arm64 are.

// enotsupp is the kernel's internal errno that leaks from map operations.
const enotsupp = syscall.Errno(524)

// bpfError is a failed bpf(2).
type bpfError struct {
	op    string
	errno syscall.Errno
	log   string // the last words of the verifier; empty where it did not get to speak
}

func (e *bpfError) Error() string {
	s := e.op + ": " + e.errno.Error()
	if e.errno == enotsupp {
		s = e.op + ": operation not supported by the map type (ENOTSUPP)"
	}
	if e.log != "" {
		s += " (verifier: " + e.log + ")"
	}
	return s
}

func (e *bpfError) Unwrap() error { return e.errno }

// bpfCall retries what a signal interrupted: Go preempts threads with
// SIGURG, and program loading gives up with EAGAIN when one is pending.
func bpfCall(op string, cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for range 50 {
		n, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return -1, &bpfError{op: op, errno: errno}
	}
	return -1, &bpfError{op: op, errno: unix.EAGAIN}
}

type mapAttr struct {
	mapType, keySize, valueSize, maxEntries, flags uint32
	innerFD, numaNode                              uint32
	name                                           [16]byte
	ifindex, btfFD, btfKey, btfValue               uint32
}

// createMap returns the descriptor of a new map. Close it.
func createMap(attr mapAttr) (int, error) {
	fd, err := bpfCall("create a map", unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return fd, err
}

// An insn is one BPF instruction as the kernel reads it.
type insn struct {
	op   uint8
	regs uint8 // destination in the low half, source in the high one
	off  int16
	imm  int32
}

// The few instructions that the probes are made of.
const (
	r0, r1, r2, r3, r4, r6, r10 = 0, 1, 2, 3, 4, 6, 10
)

func movImm(dst uint8, imm int32) insn { return insn{op: 0xb7, regs: dst, imm: imm} }
func movReg(dst, src uint8) insn       { return insn{op: 0xbf, regs: dst | src<<4} }
func addImm(dst uint8, imm int32) insn { return insn{op: 0x07, regs: dst, imm: imm} }
func call(helper int32) insn           { return insn{op: 0x85, imm: helper} }
func exit() insn                       { return insn{op: 0x95} }

// storeImm stores a doubleword at dst+off.
func storeImm(dst uint8, off int16, imm int32) insn {
	return insn{op: 0x7a, regs: dst, off: off, imm: imm}
}

// load32 loads a word from src+off.
func load32(dst, src uint8, off int16) insn { return insn{op: 0x61, regs: dst | src<<4, off: off} }

// jeqImm jumps when the register is imm; jeq32Imm looks at its lower half (BPF_JMP32).
func jeqImm(dst uint8, imm int32, off int16) insn {
	return insn{op: 0x15, regs: dst, off: off, imm: imm}
}
func jeq32Imm(dst uint8, imm int32, off int16) insn {
	return insn{op: 0x16, regs: dst, off: off, imm: imm}
}

// mapPtr loads the address of a map; mapValue that of its first value (a
// direct map value, Linux 5.2). Both take two instructions.
func mapPtr(dst uint8, fd int) []insn {
	return []insn{{op: 0x18, regs: dst | 1<<4, imm: int32(fd)}, {}}
}
func mapValue(dst uint8, fd int) []insn {
	return []insn{{op: 0x18, regs: dst | 2<<4, imm: int32(fd)}, {}}
}

type progAttr struct {
	progType, insnCount    uint32
	insns, license         unsafe.Pointer
	logLevel, logSize      uint32
	log                    unsafe.Pointer
	kernVersion, progFlags uint32
	name                   [16]byte
	ifindex, attachType    uint32
}

// loadProgram returns the descriptor of a loaded program. Close it. When the
// kernel refuses, it loads once more to hear the verifier's reason.
func loadProgram(progType, attachType uint32, insns []insn) (int, error) {
	license := []byte("Dual BSD/GPL\x00") // what our own programs say
	attr := progAttr{
		progType: progType, attachType: attachType,
		insnCount: uint32(len(insns)), insns: unsafe.Pointer(&insns[0]), license: unsafe.Pointer(&license[0]),
	}
	const op = "load a program"
	fd, err := bpfCall(op, unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	var refused *bpfError
	if errors.As(err, &refused) && (refused.errno == unix.EINVAL || refused.errno == unix.EACCES) {
		log := make([]byte, 8192)
		attr.logLevel, attr.logSize, attr.log = 1, uint32(len(log)), unsafe.Pointer(&log[0])
		again, err := bpfCall(op, unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if err == nil {
			unix.Close(again) // answered differently; the first answer stands
		}
		refused.log = reason(unix.ByteSliceToString(log))
	}
	runtime.KeepAlive(insns)
	runtime.KeepAlive(license)
	return fd, err
}

// reason picks the verifier's verdict out of its log: the last line that is
// not its statistics.
func reason(log string) string {
	var last string
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "processed ") || strings.HasPrefix(line, "verification time") || strings.HasPrefix(line, "stack depth") {
			continue
		}
		last = line
	}
	return last
}

// attachProgram attaches to a cgroup with PROG_ATTACH.
func attachProgram(cgroup, prog int, attachType, flags uint32) error {
	attr := struct{ target, prog, attachType, flags, replace uint32 }{uint32(cgroup), uint32(prog), attachType, flags, 0}
	_, err := bpfCall("attach a program", unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// createLink returns the descriptor of a bpf_link; closing it detaches. The
// target is a cgroup's descriptor, or for tcx the index of a device.
func createLink(prog, target int, attachType uint32) (int, error) {
	attr := struct{ prog, target, attachType, flags uint32 }{uint32(prog), uint32(target), attachType, 0}
	return bpfCall("create a link", unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// freezeMap makes a map read-only for user space (Linux 5.2).
func freezeMap(fd int) error {
	attr := struct{ fd uint32 }{uint32(fd)}
	_, err := bpfCall("freeze a map", unix.BPF_MAP_FREEZE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// updateBatch writes count pairs of 4-byte keys and values.
func updateBatch(fd int, keys, values []uint32) error {
	attr := struct {
		in, out, keys, values unsafe.Pointer
		count, fd             uint32
		elemFlags, flags      uint64
	}{keys: unsafe.Pointer(&keys[0]), values: unsafe.Pointer(&values[0]), count: uint32(len(keys)), fd: uint32(fd)}
	_, err := bpfCall("update a map in a batch", unix.BPF_MAP_UPDATE_BATCH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(keys)
	runtime.KeepAlive(values)
	if err == nil && int(attr.count) != len(keys) {
		return fmt.Errorf("update a map in a batch: %d of %d pairs were written", attr.count, len(keys))
	}
	return err
}

// loadBTF returns the descriptor of the kernel's copy of a BTF blob.
func loadBTF(blob []byte) (int, error) {
	attr := struct {
		btf, log                unsafe.Pointer
		size, logSize, logLevel uint32
	}{btf: unsafe.Pointer(&blob[0]), size: uint32(len(blob))}
	fd, err := bpfCall("load BTF", unix.BPF_BTF_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(blob)
	return fd, err
}

// jitedLength returns the bytes of machine code of a program. Zero means
// that it is interpreted, or that the caller may not know.
func jitedLength(prog int) (uint32, error) {
	var info struct {
		progType, id  uint32
		tag           [8]byte
		jited, xlated uint32
		_             [200]byte
	}
	attr := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(prog), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
	_, err := bpfCall("ask for the program's machine code", unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(&info)
	return info.jited, err
}

// spinLockBTF describes struct value { struct bpf_spin_lock lock; int x; }.
// Type 1 is int, the key; type 3 is the value.
func spinLockBTF() (blob []byte, key, value uint32) {
	const (
		kindInt    = 1 << 24
		kindStruct = 4 << 24
	)
	strings := "\x00int\x00bpf_spin_lock\x00val\x00value\x00lock\x00x\x00"
	name := func(s string) uint32 { return uint32(bytes.Index([]byte(strings), []byte("\x00"+s+"\x00")) + 1) }
	types := []uint32{
		name("int"), kindInt, 4, 1<<24 | 32, // 1: signed, 32 bits
		name("bpf_spin_lock"), kindStruct | 1, 4, name("val"), 1, 0, // 2
		name("value"), kindStruct | 2, 8, name("lock"), 2, 0, name("x"), 1, 32, // 3
	}
	header := struct {
		Magic                uint16
		Version, Flags       uint8
		HeaderLength         uint32
		TypeOff, TypeLen     uint32
		StringOff, StringLen uint32
	}{0xeb9f, 1, 0, 24, 0, uint32(4 * len(types)), uint32(4 * len(types)), uint32(len(strings))}
	var out bytes.Buffer
	binary.Write(&out, binary.LittleEndian, header)
	binary.Write(&out, binary.LittleEndian, types)
	out.WriteString(strings)
	return out.Bytes(), 1, 3
}
