package bench

import "time"

// The contenders' names.
const (
	firsthop = "firsthop"
	iptables = "iptables-legacy"
	nftables = "nftables"
	// iptablesNFT is kube-proxy in its mode iptables, with the iptables that writes to nf_tables. Making its tens of
	// thousands of chains takes that program so long, and the longer the more there are, that it is there only where
	// changes are measured, and only its starts, processor time and memory are.
	iptablesNFT = "iptables-nft"
)

// contenders are in the order of the tables; full are those of which all is measured.
var (
	contenders = []string{firsthop, iptables, iptablesNFT, nftables}
	full       = []string{firsthop, iptables, nftables}
)

// label is a contender's name for people.
func label(name string) string {
	switch name {
	case firsthop:
		return name
	case iptables:
		return "kube-proxy iptables (legacy)"
	case iptablesNFT:
		return "kube-proxy iptables (nft)"
	}
	return "kube-proxy " + name
}

// Result is all of what a run has measured. It is kept as JSON, of which the document is made.
type Result struct {
	Command   string
	Began     time.Time
	Ended     time.Time
	Load      [2]string // /proc/loadavg when it began and when it ended
	Kernel    string
	CPU       string
	CPUs      int
	Go        string
	Firsthop  string // version
	Proxy     string // version of kube-proxy
	Tools     string // versions of iptables and nft
	Endpoints int    // of each Service
	Sizes     []Size
}

// Size is what was measured with a number of Services.
type Size struct {
	Services int
	Run      string `json:",omitempty"` // the command and the time of its run, if that is not the whole's
	Load     string // /proc/loadavg when its connects began
	Starts   map[string][]Start
	Connects map[string]Connects
	Changes  map[string][]Change `json:",omitempty"`
	Many     *Many               `json:",omitempty"`
	Memory   map[string]Memory
}

// Start is one start of a contender, on a node that it has left nothing on.
type Start struct {
	FromExec float64 // seconds from its start to all Services answering
	FromSync float64 // seconds from all objects being known to it; NaN is told as 0
	CPU      float64 // seconds of processor time, its children's included
	Init     float64 // seconds that `firsthop init` took before; not part of FromExec
}

// Connects are bursts, of which those with one number belong together.
type Connects struct {
	VIP, Direct, Bare Bursts
}

// Bursts are of one kind.
type Bursts struct {
	Rates    []float64 // connects a second
	P50, P99 []float64 // microseconds, of each burst
	Failures map[string]int
}

// Change is one change of a Service's endpoints.
type Change struct {
	Seconds float64 // from the watch event to the first connect that reaches the new ones
	Refused int     // connects in between that failed
}

// Many are many changes in a row.
type Many struct {
	Changes int
	Seconds float64            // that they took to write
	CPU     map[string]float64 // seconds of processor time, children's included
}

// Memory is in MiB.
type Memory struct {
	AfterStart float64 // VmHWM once all Services answered
	Peak       float64 // VmHWM at the end
}
