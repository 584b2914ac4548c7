package bootstrap

import (
	"fmt"
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
	stateDir string
	runDir   string
}

func (d Dirs) places() places {
	p := places{hostRoot: d.Root, stateDir: d.StateDir, runDir: d.RunDir}
	if d.Root == "" && !d.Own() {
		if h, err := mounts.FindHost(mounts.Config{}); err == nil {
			p.hostRoot = h.Prefix
		}
	}
	if p.stateDir == "" {
		p.stateDir = filepath.Join("/", p.hostRoot, DefaultStateDir)
	}
	if p.runDir == "" {
		p.runDir = filepath.Join("/", p.hostRoot, DefaultRunDir)
	}
	return p
}

// onHost is the state directory's path on the host, for what runs there.
func (d Dirs) onHost() (stateDir string) {
	if d.StateDir == "" {
		return DefaultStateDir
	}
	return d.StateDir
}

// Places gives what discovery needs of an instance: the prefix of the host's
// files and the directory with the saved addresses, as this process reaches
// them.
func (d Dirs) Places() (hostRoot, stateDir string) {
	p := d.places()
	return p.hostRoot, p.stateDir
}
