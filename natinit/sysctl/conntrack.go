package sysctl

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	conntrackDir     = "net/netfilter/"
	conntrackMax     = conntrackDir + "nf_conntrack_max"
	conntrackBuckets = conntrackDir + "nf_conntrack_buckets"
	conntrackCount   = conntrackDir + "nf_conntrack_count"
)

// The kernel's own timeouts, in seconds (net/netfilter/nf_conntrack_proto_tcp.c).
const (
	kernelEstablished = 5 * 24 * 60 * 60
	kernelCloseWait   = 60
)

// maxConntrack is the most that is set by the number of processors, as in kube-proxy 1.36.
const maxConntrack = 1 << 20

// The defaults, which are kube-proxy's (pkg/proxy/apis/config/v1alpha1/defaults.go in k8s.io/kubernetes).
const (
	DefaultConntrackPerCore = 32 << 10
	DefaultConntrackMin     = 128 << 10
	DefaultEstablished      = 24 * time.Hour
	DefaultCloseWait        = time.Hour
)

// Conntrack says how netfilter's connection tracking is to be set, as kube-proxy's
// flags do. What is zero is left as it is.
type Conntrack struct {
	MaxPerCore uint64 // entries for each processor; 0: the limit stays, whatever Min says
	Min        uint64 // at least so many entries

	TCPEstablished Timeout // of an idle connection
	TCPCloseWait   Timeout // of one that one side has closed
	TCPLiberal     bool    // packets out of the window are no reason to call a connection invalid
	UDP            Timeout // of a flow without an answer
	UDPStream      Timeout // of one with several
}

// Timeout is one that is set.
type Timeout struct {
	time.Duration
	Given bool // by an administrator, and not only a default: it replaces what others have set
}

// Settings are what that means on a machine with so many processors. nf_conntrack_max
// and its hash table are only raised. The kernel rounds the latter up to whole
// pages of 8-byte slots (nf_ct_alloc_hashtable).
func (c Conntrack) Settings(cpus int) []Setting {
	var out []Setting
	if limit := c.limit(cpus); limit > 0 {
		out = append(out,
			Setting{Name: conntrackBuckets, Value: limit / 4, AtLeast: true, Unit: uint64(os.Getpagesize() / 8)},
			Setting{Name: conntrackMax, Value: limit, AtLeast: true})
	}
	timeout := func(name string, t Timeout, kernel uint64) {
		if t.Duration > 0 {
			out = append(out, Setting{Name: conntrackDir + name, Value: uint64(t.Duration / time.Second), Default: kernel, Given: t.Given})
		}
	}
	timeout("nf_conntrack_tcp_timeout_established", c.TCPEstablished, kernelEstablished)
	timeout("nf_conntrack_tcp_timeout_close_wait", c.TCPCloseWait, kernelCloseWait)
	timeout("nf_conntrack_udp_timeout", c.UDP, 0)
	timeout("nf_conntrack_udp_timeout_stream", c.UDPStream, 0)
	if c.TCPLiberal {
		out = append(out, Setting{Name: conntrackDir + "nf_conntrack_tcp_be_liberal", Value: 1, Given: true})
	}
	return out
}

func (c Conntrack) limit(cpus int) uint64 {
	if c.MaxPerCore == 0 {
		return 0
	}
	return max(min(c.MaxPerCore*uint64(cpus), maxConntrack), c.Min)
}

// ConntrackLoaded reports whether netfilter's connection tracking is there.
func (s Settings) ConntrackLoaded() bool {
	_, err := os.Stat(s.path(conntrackMax))
	return err == nil
}

// CPUs counts the processors of a host that are online, which may be more than
// this process is allowed to use. root is the prefix of the host's files.
func CPUs(root string) int {
	data, err := os.ReadFile(root + "/sys/devices/system/cpu/online")
	if err != nil {
		return runtime.NumCPU()
	}
	if n := countList(strings.TrimSpace(string(data))); n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countList counts what a list such as "0-3,8" has; 0 for one that is malformed.
func countList(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		if err != nil {
			return 0
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(to); err != nil || b < a {
				return 0
			}
		}
		n += b - a + 1
	}
	return n
}
