package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/mounts"
)

// Where an instance keeps its files on the host unless it is told otherwise.
const (
	DefaultStateDir = "/var/lib/firsthop"
	DefaultRunDir   = "/run/firsthop"
)

// Dirs are the directories of an instance, as they were given: paths as this
// process sees them. Empty means the default, which is the host's, also from
// inside a container.
type Dirs struct {
	BPFFS    string
	Cgroup   string
	StateDir string
	RunDir   string
	Root     string // prefix of the host's files
}

// Own reports whether the instance has a bpffs or cgroup of its own: then it
// isn't the node's, and nothing is installed for the node's next boot.
func (d Dirs) Own() bool { return d.BPFFS != "" || d.Cgroup != "" }

// Validate says which directory can't be used as it was given: all must be
// absolute.
func (d Dirs) Validate() error {
	for _, d := range []struct{ flag, path string }{
		{"--bpffs", d.BPFFS}, {"--cgroup", d.Cgroup}, {"--state-dir", d.StateDir}, {"--run-dir", d.RunDir}, {"--root", d.Root},
	} {
		if d.path != "" && (!filepath.IsAbs(d.path) || strings.ContainsAny(d.path, "\x00\n")) {
			return fmt.Errorf("%s %q: want an absolute path", d.flag, d.path)
		}
	}
	return nil
}

// places are an instance's directories as this process reaches them.
type places struct {
	hostRoot string // prefix of the host's files; "" where they are ours
	proc     string // the host's /proc
	stateDir string
	runDir   string
	noHost   error // why the host can't be reached from here; nil for an instance of its own
}

func (d Dirs) places() places {
	p := places{hostRoot: strings.TrimSuffix(d.Root, "/"), stateDir: d.StateDir, runDir: d.RunDir}
	if d.Root == "" && !d.Own() {
		h, err := mounts.FindHost(mounts.Config{})
		p.hostRoot, p.noHost = h.Prefix, err
	}
	p.proc = p.hostRoot + "/proc"
	if proc, ok := strings.CutSuffix(p.hostRoot, "/1/root"); ok {
		p.proc = proc
	}
	if p.stateDir == "" {
		p.stateDir = filepath.Join("/", p.hostRoot, DefaultStateDir)
	}
	if p.runDir == "" {
		p.runDir = filepath.Join("/", p.hostRoot, DefaultRunDir)
	}
	return p
}

// onHost is a path of ours as the host has it: for what runs there, and for the
// list of changes, which may be read from elsewhere.
func (p places) onHost(path string) string {
	if rest, ok := strings.CutPrefix(path, p.hostRoot+"/"); ok && p.hostRoot != "" {
		return "/" + rest
	}
	return path
}

// local is the way to a path of the host from here.
func (p places) local(path string) string {
	if there := p.hostRoot + path; p.hostRoot != "" && isThere(there) {
		return there
	}
	return path
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Places are an instance's directories as this process reaches them.
type Places struct {
	HostRoot string // prefix of the host's files; "" where they are ours
	Proc     string // the host's /proc
	StateDir string
	RunDir   string
}

// Places finds an instance's directories.
func (d Dirs) Places() Places {
	p := d.places()
	return Places{HostRoot: p.hostRoot, Proc: p.proc, StateDir: p.stateDir, RunDir: p.runDir}
}
