package sockets

import (
	"bytes"
	"os"
	"strconv"

	"github.com/firsthop/firsthop/bpf"
)

// inUse reports whether the calling thread's network namespace has sockets of a
// protocol and family. Listing them would take longer: the kernel has one table
// for all namespaces, which it walks for each. It is true where that is unknown.
func inUse(p bpf.Proto, six bool) bool {
	file, prefix := "/proc/thread-self/net/sockstat", map[bpf.Proto]string{bpf.UDP: "UDP", bpf.TCP: "TCP"}[p]
	if six {
		file, prefix = file+"6", prefix+"6"
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return true
	}
	n, ok := parseInUse(b, prefix)
	return n > 0 || !ok
}

// parseInUse reads the line "UDP: inuse 3 mem 2" of a protocol.
func parseInUse(b []byte, name string) (n int, ok bool) {
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) < 3 || string(fields[0]) != name+":" || string(fields[1]) != "inuse" {
			continue
		}
		n, err := strconv.Atoi(string(fields[2]))
		return n, err == nil
	}
	return 0, false
}
