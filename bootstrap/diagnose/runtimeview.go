package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
)

// RuntimeView is what the runtime of an instance says, as far as it matters
// here. Who calls brings it: the runtime is another program's part. The zero
// value stands for a runtime that doesn't run.
type RuntimeView struct {
	Runtime  *RuntimeStatus
	Services []RuntimeService
	Silent   error // why one that is there doesn't answer
}

// RuntimeStatus is how a running runtime is.
type RuntimeStatus struct {
	PID        int             `json:"pid"`
	Version    string          `json:"version"`
	Since      time.Time       `json:"since"`
	Synced     bool            `json:"synced"` // it knows all Services, and has written the table
	Ports      int             `json:"service_ports"`
	Out        []string        `json:"out,omitempty"`         // Service ports that are not in the table as they should be, and why
	Troubles   []string        `json:"troubles,omitempty"`    // what else goes wrong now
	Held       []string        `json:"ports_held,omitempty"`  // ports of its own that kube-proxy has, which runs too
	Problems   []string        `json:"problems,omitempty"`    // of objects: what of them is not served, or not as they ask, and why
	Proven     time.Time       `json:"proven,omitzero"`       // when a connection of its own last went through the programs
	ProofError string          `json:"proof_error,omitempty"` // why the last one did not
	CutOff     string          `json:"cut_off,omitempty"`     // why it hears nothing of the API: the table is served as it was last known
	Servers    []RuntimeServer `json:"api_servers,omitempty"` // as it sees them
	Sockets    RuntimeSockets  `json:"sockets,omitzero"`      // on backends that went: what became of them since its start
	Claims     []string        `json:"claims,omitempty"`      // of Problems, claims of Services on addresses of API servers

	PacketPath *RuntimePacketPath `json:"packet_path,omitempty"` // absent: it is off
}

// RuntimePacketPath is how clients outside of the cluster are served.
type RuntimePacketPath struct {
	Sentence string            `json:"sentence"`
	Error    string            `json:"error,omitempty"` // why not, or not by all devices
	Uplinks  []RuntimeUplink   `json:"uplinks"`
	Left     []string          `json:"left,omitempty"` // devices that one could expect among the uplinks, and why they are none
	Ports    string            `json:"masquerade_ports,omitempty"`
	Packets  map[string]uint64 `json:"packets,omitempty"`
}

// RuntimeUplink is a device that leads off the node.
type RuntimeUplink struct {
	Device   string   `json:"device"`
	Why      string   `json:"why"`
	Attached bool     `json:"attached"`
	By       string   `json:"by,omitempty"`
	Ahead    []string `json:"ahead,omitempty"` // programs of others that packets pass before ours
	Error    string   `json:"error,omitempty"`
}

// RuntimeSockets counts sockets whose Service lost their backend.
type RuntimeSockets struct {
	Moved    uint64 `json:"moved"` // connected UDP sockets that continue with another backend
	EndedUDP uint64 `json:"ended_udp"`
	EndedTCP uint64 `json:"ended_tcp"`
	Left     int    `json:"left"`  // now: could be neither moved nor ended
	Hung     int    `json:"hung"`  // now: their application holds their lock
	Swept    uint64 `json:"swept"` // entries of closed sockets that were removed
}

// RuntimeServer is an API server as the runtime sees it.
type RuntimeServer struct {
	Endpoint string    `json:"endpoint"`
	State    string    `json:"state"`
	Used     bool      `json:"used"`
	Source   string    `json:"source,omitempty"`
	Asked    time.Time `json:"asked,omitzero"`
	LastLive time.Time `json:"last_live,omitzero"`
	Millis   float64   `json:"ms,omitempty"`
	Reason   string    `json:"reason,omitempty"`
}

// RuntimeService is a Service port that the runtime knows.
type RuntimeService struct {
	Index  uint32 // 0: it isn't in the table
	Name   string // "default/web:http"
	Family string
	Kinds  []string
	Out    string
}

// name gives the Services of a table their names, and adds those that are not in it.
func (v RuntimeView) name(table []TableService, ofInit map[string]string) []TableService {
	byIndex := make(map[uint32]RuntimeService, len(v.Services))
	var out []TableService
	for _, s := range v.Services {
		if s.Index != 0 {
			byIndex[s.Index] = s
		} else {
			out = append(out, TableService{
				Name: s.Name + " (" + s.Family + ")", Kinds: s.Kinds, Owner: natinit.OwnerRuntime,
				Frontends: []string{}, Backends: backendsOf(nat.NewState(0), 0), Out: cmp.Or(s.Out, "not written yet"),
			})
		}
	}
	for i := range table {
		if s, known := byIndex[table[i].Index]; known {
			table[i].Name, table[i].Kinds, table[i].Out = s.Name, s.Kinds, s.Out
		} else if len(table[i].Frontends) > 0 {
			table[i].Name = ofInit[table[i].Frontends[0]]
		}
	}
	return slices.Concat(table, out)
}

// Sentence is the runtime in one line.
func (v RuntimeView) Sentence() string {
	r := v.Runtime
	switch {
	case v.Silent != nil:
		return "is there, but doesn't answer: " + v.Silent.Error()
	case r == nil:
		return "not running"
	}
	s := fmt.Sprintf("pid %d, version %s, since %s; ", r.PID, r.Version, r.Since.Local().Format(time.DateTime))
	if !r.Synced {
		s += "waiting for the API; what the table holds is served"
	} else {
		s += fmt.Sprintf("%d Service ports are served", r.Ports-len(r.Out))
	}
	if n := len(r.Out); n > 0 {
		s += fmt.Sprintf(", %d are out (`firsthop nat` says why)", n)
	}
	if len(r.Troubles) > 0 {
		s += "; " + r.Troubles[0]
	}
	return s
}

// inTable are the Services that are in the table.
func (v RuntimeView) inTable() []RuntimeService {
	return slices.DeleteFunc(slices.Clone(v.Services), func(s RuntimeService) bool { return s.Index == 0 })
}

// proofSentence is the verdict where a runtime proves by itself that connections are
// served: what init proved may be long ago. A table that nobody can keep up to date
// is not called served without saying so first.
func (r *RuntimeStatus) proofSentence() string {
	proven := "not proven by the runtime yet, which started " + discover.Ago(time.Since(r.Since))
	switch {
	case !r.Proven.IsZero():
		proven = "proven " + discover.Ago(time.Since(r.Proven)) + " by the runtime"
	case r.ProofError != "":
		proven = "never proven by the runtime"
	}
	if r.ProofError != "" {
		proven = "as far as table and attachment tell; " + proven + ", whose last proof failed: " + r.ProofError
	}
	switch {
	case r.CutOff != "":
		return "cut off from the API: " + r.CutOff + "; what was last known is served, " + proven
	case r.ProofError != "":
		proven = "serving, " + proven
	default:
		proven = "serving; " + proven
	}
	if len(r.Troubles) > 0 {
		proven += "; but " + r.Troubles[0]
	}
	return proven
}

// well reports whether nothing is to be said against what is served.
func (r *RuntimeStatus) well() bool {
	return r == nil || r.CutOff == "" && r.ProofError == "" && len(r.Troubles) == 0
}
