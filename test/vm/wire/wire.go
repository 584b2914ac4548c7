// Package wire is what a guest's PID 1 and the host say to each other: the manifest that goes into the guest with its
// initramfs, and the events that come back over a serial port, one a line.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// ManifestPath is where PID 1 finds its manifest.
const ManifestPath = "/manifest.json"

// Manifest says what a guest does.
type Manifest struct {
	// Port is the device that events are written to.
	Port string
	// Modules are kernel modules in the order in which they are loaded.
	Modules []string
	// Cgroups is how the hierarchies are mounted: "v2", "hybrid" or "v1".
	Cgroups string
	// System is the disk with a system's root, as /dev/vda, if PID 1 is to be that system's own. Jobs are then run by a
	// unit in it (SystemJobs), and Modules are only those that must be there before.
	System string
	// Cut takes the power away after the jobs instead of shutting the system down: what is not on its disk is lost.
	Cut  bool
	Jobs []Job
}

// SystemDir is where a system finds what it is tested with: the directory of that name of the initramfs. SystemRun in it
// is copied to /run, so that units for the test are no part of the system's disk.
const (
	SystemDir  = "/run/vm"
	SystemRun  = "root-run"
	SystemJobs = "jobs" // init's argument that says to run the jobs
)

// Job is a program to run.
type Job struct {
	Name    string
	Argv    []string
	Env     []string // besides PATH, HOME and TMPDIR
	Dir     string
	Seconds int // it is ended after that time, with a SIGQUIT first, which makes Go programs print what they are at
}

// Kind is the first byte of an event.
type Kind byte

// The events, in the order in which they come.
const (
	Hello Kind = 'H' // PID 1 runs; the text is the kernel's release
	Note  Kind = 'N' // something that PID 1 could not do; goes into the log
	Start Kind = 'S' // a job starts; the text is its name
	Line  Kind = '>' // one line of its output
	Exit  Kind = 'X' // it ended; the text is an Outcome
	Bye   Kind = 'B' // all jobs were run; the machine goes off
)

// Outcome is how a job ended.
type Outcome struct {
	Code   int // the exit code, or 128 and the signal
	Millis int64
	Late   bool   `json:",omitempty"` // it was ended because its time was over
	Error  string `json:",omitempty"` // it could not be started
}

// Event is one line on the wire.
type Event struct {
	Kind Kind
	Text string
}

// Write puts an event on the wire. The text must be one line.
func Write(w io.Writer, k Kind, text string) error {
	_, err := fmt.Fprintf(w, "%c %s\n", k, text)
	return err
}

// WriteOutcome puts an Exit on the wire.
func WriteOutcome(w io.Writer, o Outcome) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return Write(w, Exit, string(data))
}

// Outcome reads the text of an Exit.
func (e Event) Outcome() (Outcome, error) {
	var o Outcome
	if err := json.Unmarshal([]byte(e.Text), &o); err != nil {
		return o, fmt.Errorf("parse outcome %q: %w", e.Text, err)
	}
	return o, nil
}

// Read calls fn for every event until the wire ends. Lines that are no events, such as a firmware's greeting, are passed over.
func Read(r io.Reader, fn func(Event)) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if e, ok := parse(line); ok {
			fn(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// parse reads one line. A line that is cut off is no event.
func parse(line string) (Event, bool) {
	if len(line) < 3 || line[1] != ' ' || line[len(line)-1] != '\n' {
		return Event{}, false
	}
	switch k := Kind(line[0]); k {
	case Hello, Note, Start, Line, Exit, Bye:
		return Event{k, line[2 : len(line)-1]}, true
	}
	return Event{}, false
}
