package sockdiag

import (
	"bytes"
	"os"
	"slices"
	"strconv"

	"github.com/firsthop/firsthop/bpf"
)

const sockstat = "/proc/thread-self/net/sockstat"

// inUse reports whether the calling thread's network namespace has sockets of a protocol and family. Listing them would
// take longer: the kernel has one table for all namespaces, which it walks for each. It is true where that is unknown.
func inUse(p bpf.Proto, six bool) bool {
	file, protocol := sockstat, map[bpf.Proto]string{bpf.UDP: "UDP", bpf.TCP: "TCP"}[p]
	if six {
		file, protocol = file+"6", protocol+"6"
	}
	n, ok := readStat(file, protocol, "inuse")
	return n > 0 || !ok
}

// TCPSockets is how many TCP sockets the node has, in all network namespaces; 0 if it can't be told.
func TCPSockets() int {
	n, _ := readStat(sockstat, "TCP", "alloc")
	return n
}

// readStat reads a number from the line of a protocol, such as "UDP: inuse 3 mem 2".
func readStat(file, protocol, key string) (n int, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != protocol+":" {
			continue
		}
		at := 1 + slices.IndexFunc(fields, func(f []byte) bool { return string(f) == key })
		if at == 0 || at == len(fields) {
			return 0, false
		}
		n, err := strconv.Atoi(string(fields[at]))
		return n, err == nil
	}
	return 0, false
}
