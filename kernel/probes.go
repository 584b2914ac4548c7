package kernel

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The names of the features. They are part of the interface: reports,
// Config.Forbid and docs/kernels.md use them.
const (
	FeatureSyscall    = "bpf-syscall"
	FeatureConnect4   = "connect4"
	FeatureConnect6   = "connect6"
	FeatureSendmsg4   = "sendmsg4"
	FeatureSendmsg6   = "sendmsg6"
	FeatureRecvmsg4   = "recvmsg4"
	FeatureRecvmsg6   = "recvmsg6"
	FeatureAttach     = "cgroup-attach"
	FeatureHash       = "map-hash"
	FeatureArray      = "map-array"
	FeatureLRUHash    = "map-lru-hash"
	FeatureLPMTrie    = "map-lpm-trie"
	FeatureRodata     = "rodata"
	FeatureBTF        = "btf"
	FeatureSpinLock   = "spin-lock"
	FeatureCookie     = "helper-socket-cookie"
	FeaturePrandom    = "helper-prandom"
	FeatureMapHelpers = "helper-map"
	FeatureJmp32      = "jmp32"
	FeatureCgroup2    = "cgroup2"
	FeatureBPFFS      = "bpffs"

	FeatureLink        = "cgroup-link"
	FeatureBatch       = "batch"
	FeatureNetnsCookie = "netns-cookie"
	FeatureGetpeername = "getpeername"
	FeatureContextSock = "context-sock"
	FeatureSetRetval   = "set-retval"
	FeatureJIT         = "jit"

	FeatureReplace        = "attach-replace"
	FeatureDeadBranch     = "dead-branch"
	FeatureMmapable       = "map-mmapable"
	FeatureRingBuffer     = "ring-buffer"
	FeatureMemcg          = "memcg-accounting"
	FeatureCapBPF         = "cap-bpf"
	FeatureSONetnsCookie  = "so-netns-cookie"
	FeatureSchedCLS       = "sched-cls"
	FeatureRedirectNeigh  = "redirect-neigh"
	FeatureRedirectPeer   = "redirect-peer"
	FeatureTCX            = "tcx"
	FeatureSocketIterator = "socket-destroy"
	FeatureLinkList       = "link-list"
	FeatureIntoCgroup     = "clone-into-cgroup"
)

// el82 is RHEL 8.2's first kernel, the floor; measured to have all that is
// needed. el89 is RHEL 8.9's, measured to have much that 8.2 lacks; which
// minor release between them brought it is not known.
var (
	el82 = []int{193}
	el83 = []int{240}
	el89 = []int{513}
)

// askedWithoutRights are the features that anybody may ask for.
var askedWithoutRights = []string{FeatureCgroup2, FeatureBPFFS, FeatureCapBPF, FeatureSONetnsCookie, FeatureIntoCgroup, FeatureSocketIterator}

const (
	rhelFloor  = "RHEL 8.2 (4.18.0-193) has it"
	rhelNewer  = "RHEL 8.9 (4.18.0-513) has it, 8.2 does not"
	rhelLacks  = "no RHEL 8 kernel up to 8.9 (4.18.0-513) has it"
	notWorking = "no Service IP can be translated: the node is not supported"
)

// Probes lists every probe, the needed ones first. The order is stable.
func Probes() []Probe {
	return append(neededProbes(), optionalProbes()...)
}

func neededProbes() []Probe {
	need := func(name, sentence string, major, minor int, option, without string, run func(Config) error) Probe {
		return Probe{Feature: Feature{
			Name: name, Sentence: sentence, Since: Version{Major: major, Minor: minor},
			RHEL: rhelFloor, RHELBuild: el82, Option: option, Needed: true, WithoutIt: without,
		}, run: run}
	}
	const cgroupBPF, bpfSyscall = "CONFIG_CGROUP_BPF", "CONFIG_BPF_SYSCALL"
	return []Probe{
		need(FeatureSyscall, "the bpf(2) system call", 3, 18, bpfSyscall, notWorking, probeSyscall),
		need(FeatureConnect4, "programs at connect() over IPv4", 4, 17, cgroupBPF, notWorking, sockAddr(ebpf.AttachCGroupInet4Connect)),
		need(FeatureConnect6, "programs at connect() over IPv6", 4, 17, cgroupBPF, "IPv6 Service IPs, and IPv4 ones from IPv6 sockets, lead nowhere", sockAddr(ebpf.AttachCGroupInet6Connect)),
		need(FeatureSendmsg4, "programs at sendmsg() on unconnected UDP over IPv4", 4, 18, cgroupBPF, "unconnected UDP (most DNS clients) does not reach Service IPs", sockAddr(ebpf.AttachCGroupUDP4Sendmsg)),
		need(FeatureSendmsg6, "programs at sendmsg() on unconnected UDP over IPv6", 4, 18, cgroupBPF, "unconnected UDP over IPv6 does not reach Service IPs", sockAddr(ebpf.AttachCGroupUDP6Sendmsg)),
		need(FeatureRecvmsg4, "programs at recvmsg() on unconnected UDP over IPv4", 5, 2, cgroupBPF, "UDP replies come from the backend's address and clients drop them", sockAddr(ebpf.AttachCGroupUDP4Recvmsg)),
		need(FeatureRecvmsg6, "programs at recvmsg() on unconnected UDP over IPv6", 5, 2, cgroupBPF, "UDP replies over IPv6 come from the backend's address and clients drop them", sockAddr(ebpf.AttachCGroupUDP6Recvmsg)),
		need(FeatureAttach, "attaching to a cgroup beside other programs (BPF_F_ALLOW_MULTI)", 4, 15, cgroupBPF, notWorking, attachNowhere(unix.BPF_F_ALLOW_MULTI, false)),
		need(FeatureHash, "hash maps", 3, 19, bpfSyscall, notWorking, mapType(ebpf.Hash)),
		need(FeatureArray, "array maps", 3, 19, bpfSyscall, notWorking, mapType(ebpf.Array)),
		need(FeatureLRUHash, "LRU hash maps", 4, 10, bpfSyscall, "the memory of connections has no bound", mapType(ebpf.LRUHash)),
		need(FeatureLPMTrie, "longest-prefix-match maps", 4, 11, bpfSyscall, "source ranges of Services have no map, so the programs don't load", mapType(ebpf.LPMTrie)),
		need(FeatureRodata, "constants in frozen, read-only maps", 5, 2, bpfSyscall, "the programs can't be configured at load", probeRodata),
		need(FeatureBTF, "type information (BTF) for maps", 4, 18, bpfSyscall, "maps have no types, and no lock can live in them", probeBTF),
		need(FeatureSpinLock, "locks in array values, taken by connect-time programs (bpf_spin_lock)", 5, 1, cgroupBPF, "two sockets could mix what they remember for the way back", probeSpinLock),
		need(FeatureCookie, "the helper get_socket_cookie in connect-time programs", 4, 19, cgroupBPF, "a socket can't be told from another, so there is no way back from backend to Service IP", calls(asm.FnGetSocketCookie.Call())),
		need(FeaturePrandom, "the helper get_prandom_u32 in connect-time programs", 4, 17, cgroupBPF, "backends can't be chosen at random", calls(asm.FnGetPrandomU32.Call())),
		need(FeatureMapHelpers, "map look-up, update and delete in connect-time programs", 4, 17, cgroupBPF, notWorking, probeMapHelpers),
		need(FeatureJmp32, "32-bit jumps (BPF instruction set v3)", 5, 1, bpfSyscall, "the programs don't load", probeJmp32),
		need(FeatureCgroup2, "the cgroup v2 file system", 4, 5, "CONFIG_CGROUPS", "there is nothing to attach to", fileSystem("cgroup2")),
		need(FeatureBPFFS, "the BPF file system", 4, 4, bpfSyscall, "maps and links don't outlive the process that made them", fileSystem("bpf")),
	}
}

func optionalProbes() []Probe {
	type row struct {
		name, sentence string
		major, minor   int
		rhel           string
		build          []int
		option         string
		without        string
		atInit         bool
		run            func(Config) error
	}
	var probes []Probe
	for _, r := range []row{
		{FeatureLink, "bpf_link for cgroups, described by the kernel", 5, 8, rhelNewer, el89, "CONFIG_CGROUP_BPF", "programs are attached with BPF_PROG_ATTACH: a swap takes two steps, and an attachment has no pin", true, probeLink},
		{FeatureBatch, "batch operations on hash maps", 5, 6, rhelNewer, el89, "CONFIG_BPF_SYSCALL", "maps are written one entry at a time", true, probeBatch},
		{FeatureNetnsCookie, "the helper get_netns_cookie in connect-time programs", 5, 7, rhelNewer, el89, "CONFIG_CGROUP_BPF", "session affinity is per node, NodePorts are not served on loopback, scope host and opt-out are refused", true, calls(asm.FnGetNetnsCookie.Call(), asm.Mov.Imm(asm.R1, 0), asm.FnGetNetnsCookie.Call())},
		{FeatureGetpeername, "programs at getpeername()", 5, 8, rhelNewer, el89, "CONFIG_CGROUP_BPF", "getpeername() says the backend's address, not the Service IP", true, sockAddr(ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername)},
		{FeatureContextSock, "the socket in connect-time programs", 5, 3, "RHEL 8.3 (4.18.0-240) has it, 8.1 does not", el83, "CONFIG_CGROUP_BPF", "source ranges judge a socket by its pod's address, whatever it is bound to; sockets that are bound to loopback are not told", true, calls(asm.LoadMem(asm.R1, asm.R1, 64, asm.DWord), asm.LoadMem(asm.R1, asm.R1, 24, asm.Word))},
		// The helper is of 5.18; sock_addr programs got it with commit bed89185af0d.
		{FeatureSetRetval, "the helper set_retval in connect-time programs", 6, 1, rhelLacks, nil, "CONFIG_CGROUP_BPF", "a connect to a Service without backends fails with EPERM, not ECONNREFUSED", true, calls(asm.Mov.Imm(asm.R1, -111), asm.FnSetRetval.Call())},
		{FeatureJIT, "compiling programs to machine code", 3, 18, rhelFloor, el82, "CONFIG_BPF_JIT, net.core.bpf_jit_enable", "programs are interpreted, several times slower", true, probeJIT},

		{FeatureReplace, "exchanging an attached program in one step (BPF_F_REPLACE)", 5, 6, rhelNewer, el89, "CONFIG_CGROUP_BPF", "without links, a new program is attached beside the old one for an instant", false, attachNowhere(unix.BPF_F_ALLOW_MULTI, true)},
		{FeatureDeadBranch, "constants that take branches out of programs", 5, 5, rhelNewer, el89, "", "nothing: calls of newer helpers are replaced when the programs are loaded", false, probeDeadBranch},
		{FeatureMmapable, "maps in memory (BPF_F_MMAPABLE)", 5, 5, rhelNewer, el89, "", "variables of programs are read by system call", false, probeMmapable},
		// The helper ktime_get_coarse_ns came with the same release: to ask directly, RLIMIT_MEMLOCK would have to be lowered
		// for the whole process.
		{FeatureMemcg, "map memory counted by cgroup", 5, 11, rhelNewer, el89, "CONFIG_MEMCG", "map memory counts against RLIMIT_MEMLOCK, which is raised for this process (CAP_SYS_RESOURCE)", false, helper(ebpf.CGroupSockAddr, asm.FnKtimeGetCoarseNs)},
		{FeatureCapBPF, "CAP_BPF", 5, 8, "", nil, "", "loading needs CAP_SYS_ADMIN", false, probeCapBPF},
		{FeatureRingBuffer, "ring buffer maps", 5, 8, rhelNewer, el89, "", "events come through per-CPU buffers", false, mapType(ebpf.RingBuf)},
		{FeatureSONetnsCookie, "the socket option SO_NETNS_COOKIE", 5, 14, "", nil, "", "a program of firsthop's own tells which network namespace is which, where netns-cookie and cgroup-link are there", false, probeSONetnsCookie},
		{FeatureSchedCLS, "programs at traffic control", 4, 1, rhelFloor, el82, "", "traffic from outside the cluster is not served", false, progType(ebpf.SchedCLS)},
		{FeatureRedirectNeigh, "the helper redirect_neigh", 5, 10, rhelNewer, el89, "", "packets take the way through the stack", false, helper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
		{FeatureRedirectPeer, "the helper redirect_peer", 5, 10, rhelNewer, el89, "", "packets to local pods take the way through the stack", false, helper(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{FeatureTCX, "tcx, links at traffic control", 6, 6, rhelLacks, nil, "CONFIG_NET_XGRESS", "clsact filters are used", false, probeTCX},
		{FeatureLinkList, "listing links by their ids", 5, 8, "", nil, "CONFIG_BPF_SYSCALL", "links whose pins are gone can't be found: by prog_attach nothing is lost", false, probeLinkList},
		{FeatureIntoCgroup, "processes that are born in a cgroup (CLONE_INTO_CGROUP)", 5, 7, "", nil, "CONFIG_CGROUPS", "the process that proves a connection is moved into the cgroup after its start", false, probeIntoCgroup},
		{FeatureSocketIterator, "destroying sockets from an iterator", 6, 5, rhelLacks, nil, "CONFIG_DEBUG_INFO_BTF", "sockets of vanished UDP backends are destroyed through sock_diag", false, probeSocketIterator},
	} {
		probes = append(probes, Probe{Feature: Feature{
			Name: r.name, Sentence: r.sentence, Since: Version{Major: r.major, Minor: r.minor},
			RHEL: r.rhel, RHELBuild: r.build, Option: r.option, WithoutIt: r.without,
		}, atInit: r.atInit, run: r.run})
	}
	return probes
}
