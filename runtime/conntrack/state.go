package conntrack

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// State is where a flow is in its life.
type State uint8

// The states.
const (
	Unanswered  State = iota // no packet has come back yet
	Established              // packets went both ways
	Closing                  // one side has ended it: TCP FIN, SCTP SHUTDOWN
	Closed                   // both sides have, or it was cut off from outside, which anybody could have done
	Reset                    // the backend has cut it off: TCP RST, SCTP ABORT
	Stack                    // another service proxy began it: it is left to the stack
	Waiting                  // the mark of packets that get a source when they leave this node: none has yet
	states
)

var stateNames = [states]string{"unanswered", "established", "closing", "closed", "reset", "stack", "waiting"}

func (s State) String() string { return stateNames[s] }

// MarshalText makes a State readable in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// FlowStates are the states that a client's flow may have, by name.
func FlowStates() []State { return []State{Unanswered, Established, Closing, Closed, Reset, Stack} }

// StateOf is the state that an entry tells.
func StateOf(f bpf.Flow) State {
	switch {
	case f.Flags&bpf.FlowStack != 0:
		return Stack
	case isMarker(f):
		return Waiting
	case f.Flags&bpf.FlowReset != 0:
		return Reset
	case f.Flags.Ended(), f.Flags&bpf.FlowCut != 0:
		return Closed
	case f.Flags&(bpf.FlowFin|bpf.FlowFinOther) != 0:
		return Closing
	case f.Flags&bpf.FlowReplied != 0:
		return Established
	}
	return Unanswered
}

// isMarker reports whether an entry marks packets for masquerade, and none has come yet.
func isMarker(f bpf.Flow) bool { return f.Flags&bpf.FlowMasquerade != 0 && f.Port.Uint16() == 0 }

// beginTime is what a flow's entries are written in, with much to spare: a marker that is older and has no flow will get none.
const beginTime = 10 * time.Second

// Timeout is how long a flow without packets is kept. The values are those that kube-proxy sets for netfilter, or else
// netfilter's own: netfilter has the same flow, as pod and client see it, and drops what it has forgotten where its rules
// drop invalid packets.
//
// SCTP has what netfilter has since Linux 6.3 (4a1d3acd6ea8, before: 5 days): ends that live send each other
// heartbeats every 30 seconds, so after 210 one has gone without a word, or by another path.
func (s State) Timeout(p bpf.Proto) time.Duration {
	switch s {
	case Reset, Waiting:
		return beginTime
	case Closed:
		return 120 * time.Second
	case Stack:
		return 0 // netfilter's
	}
	switch p {
	case bpf.UDP:
		if s == Unanswered {
			return 30 * time.Second
		}
		return 180 * time.Second
	case bpf.SCTP:
		if s == Unanswered {
			return 60 * time.Second
		}
		return 210 * time.Second
	}
	switch s {
	case Unanswered:
		return 60 * time.Second
	case Closing:
		return time.Hour
	}
	return 24 * time.Hour
}

// overdue reports whether a flow of which an entry tells has been silent for longer than it is kept.
func overdue(p bpf.Proto, f bpf.Flow, now uint64) bool {
	s := StateOf(f)
	return s != Stack && Age(f, now) > s.Timeout(p)
}

// Age is since when an entry has noted no packet.
func Age(f bpf.Flow, now uint64) time.Duration {
	if f.Seen > now { // noted after now was read
		return 0
	}
	return time.Duration(now - f.Seen)
}

// joined is what both halves of a flow tell together.
func joined(f, partner bpf.Flow) bpf.Flow {
	const swapped = bpf.FlowFin | bpf.FlowFinOther
	f.Flags |= partner.Flags &^ swapped
	if partner.Flags&bpf.FlowFin != 0 {
		f.Flags |= bpf.FlowFinOther
	}
	if partner.Flags&bpf.FlowFinOther != 0 {
		f.Flags |= bpf.FlowFin
	}
	f.Seen = max(f.Seen, partner.Seen)
	return f
}

// Now is the clock of flows: bpf_ktime_get_ns.
func Now() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // there is no kernel without it
	}
	return uint64(t.Nano())
}
