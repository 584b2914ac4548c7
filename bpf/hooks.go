package bpf

import "github.com/cilium/ebpf"

// Hook is one place where the connect-time load balancer is attached.
type Hook struct {
	Name   string          // "connect4"; also the name of its pin
	Attach ebpf.AttachType // what the kernel calls it
	UDP    bool            // only needed for UDP
}

// Program is the name of the hook's program in the object and in the kernel
// (at most 15 bytes).
func (h Hook) Program() string { return "fh_" + h.Name }

// AvailableWith reports whether a kernel with these features has the hook.
func (h Hook) AvailableWith(f Features) bool {
	switch h.Attach {
	case ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername:
		return f.GetPeername
	}
	return true
}

// Hooks are all hooks in the order in which they are attached: the way back
// first, so that no socket is translated before its replies are.
func Hooks() []Hook {
	return []Hook{
		{Name: "getpeername4", Attach: ebpf.AttachCgroupInet4GetPeername},
		{Name: "getpeername6", Attach: ebpf.AttachCgroupInet6GetPeername},
		{Name: "recvmsg4", Attach: ebpf.AttachCGroupUDP4Recvmsg, UDP: true},
		{Name: "recvmsg6", Attach: ebpf.AttachCGroupUDP6Recvmsg, UDP: true},
		{Name: "sendmsg4", Attach: ebpf.AttachCGroupUDP4Sendmsg, UDP: true},
		{Name: "sendmsg6", Attach: ebpf.AttachCGroupUDP6Sendmsg, UDP: true},
		{Name: "connect4", Attach: ebpf.AttachCGroupInet4Connect},
		{Name: "connect6", Attach: ebpf.AttachCGroupInet6Connect},
	}
}

// HookByName finds a hook; false: there is none of that name.
func HookByName(name string) (Hook, bool) {
	for _, h := range Hooks() {
		if h.Name == name {
			return h, true
		}
	}
	return Hook{}, false
}
