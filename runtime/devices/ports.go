package devices

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// Len is how many ports there are in the range.
func (p Ports) Len() int { return int(p.Last) - int(p.First) + 1 }

// DefaultNodePorts is the range of a cluster whose API server has no --service-node-port-range.
var DefaultNodePorts = Ports{30000, 32767}

// minPorts is how many ports masquerade needs: so many flows at once from one address of the node to one endpoint.
const minPorts = 1024

const (
	localRange    = "net/ipv4/ip_local_port_range" // for IPv6 too
	localReserved = "net/ipv4/ip_local_reserved_ports"
)

// PortRange returns the ports for masquerade: the largest range of ports from 1024 on that neither sockets of the node
// (ip_local_port_range), nor those whom ports are reserved for (ip_local_reserved_ports), nor node ports use. proc is a
// /proc whose sys/net is that of the host's network namespace: the kernel shows the reader's own. The error says what to
// do where there is none of at least 1,024 ports.
func PortRange(proc string, nodePorts Ports) (Ports, error) {
	text, err := readSysctl(proc, localRange)
	if err != nil {
		return Ports{}, err
	}
	bounds := strings.Fields(text)
	if len(bounds) != 2 {
		return Ports{}, fmt.Errorf("read net.ipv4.ip_local_port_range: %q is not two numbers", text)
	}
	local, err := parsePorts(bounds[0] + "-" + bounds[1])
	if err != nil {
		return Ports{}, fmt.Errorf("read net.ipv4.ip_local_port_range: %w", err)
	}
	text, err = readSysctl(proc, localReserved)
	if err != nil {
		return Ports{}, err
	}
	taken := []Ports{{0, 1023}, local, nodePorts}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := parsePorts(part)
		if err != nil {
			return Ports{}, fmt.Errorf("read net.ipv4.ip_local_reserved_ports: %w", err)
		}
		taken = append(taken, p)
	}
	free, size := largestGap(taken)
	if size < minPorts {
		return Ports{}, fmt.Errorf("no %d consecutive ports are free for masquerade: net.ipv4.ip_local_port_range (%s), net.ipv4.ip_local_reserved_ports "+
			"and the cluster's node ports (%s) leave %d at most; make ip_local_port_range smaller, such as 32768-60999", minPorts, local, nodePorts, size)
	}
	return free, nil
}

func readSysctl(proc, name string) (string, error) {
	data, err := os.ReadFile(filepath.Join(proc, "sys", name))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return strings.TrimSpace(string(data)), nil
}

// parsePorts reads "8080" or "8080-8090".
func parsePorts(s string) (Ports, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return Ports{}, fmt.Errorf("port range %q: %w", s, err)
	}
	b, err := strconv.ParseUint(last, 10, 16)
	if err != nil {
		return Ports{}, fmt.Errorf("port range %q: %w", s, err)
	}
	if a > b {
		return Ports{}, fmt.Errorf("port range %q: its end is below its start", s)
	}
	return Ports{uint16(a), uint16(b)}, nil
}

// largestGap returns the largest range up to 65535 that is in none of some ranges, the lowest of equals, and its size, 0
// if all is taken.
func largestGap(taken []Ports) (gap Ports, size int) {
	slices.SortFunc(taken, func(a, b Ports) int { return int(a.First) - int(b.First) })
	next := 0 // the first port that may be free
	consider := func(end int) {
		if end-next > size {
			gap, size = Ports{uint16(next), uint16(end - 1)}, end-next
		}
	}
	for _, t := range taken {
		consider(int(t.First))
		next = max(next, int(t.Last)+1)
	}
	consider(65536)
	return gap, size
}
