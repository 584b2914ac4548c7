package units

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/firsthop/firsthop/natinit/instance"
)

// Marker is the line that makes a text file ours. A file without it is never
// overwritten and never removed.
const Marker = "# Installed by firsthop"

// BinaryPath is where the host's copy of firsthop lives.
const BinaryPath = "/opt/firsthop/bin/firsthop"

// Where things go on a host, unless Config says otherwise.
const (
	DefaultBPFFS = "/sys/fs/bpf"
	// EnvironmentFile is the administrator's: read at boot, never written.
	EnvironmentFile = "/etc/default/firsthop"
	// ServiceName is the systemd unit that runs the init stage at boot.
	ServiceName = "firsthop-init.service"
)

var (
	// ErrForeign says that a file in the way is not ours; the error names it.
	ErrForeign = errors.New("not installed by firsthop")
	// ErrReadOnly says that a directory we must write to is on a read-only file system.
	ErrReadOnly = errors.New("read-only")
	// ErrNoExec says that the binary's file system is mounted noexec.
	ErrNoExec = errors.New("mounted noexec")
	// ErrMasked says that the administrator masked a unit.
	ErrMasked = errors.New("masked")
	// ErrNotFound says that a unit has no unit file.
	ErrNotFound = errors.New("unit not found")
)

// Config says what to install and where. The zero value is the host itself
// with the default directories and no binary to copy.
type Config struct {
	// Root is put before every host path: "" or "/" on the host, "/host" or
	// "/proc/1/root" in a container, a temporary directory in a test.
	Root string

	// BPFFS is the bpffs mount point on the host; "" is DefaultBPFFS. Only
	// the default one is ever put into a mount unit or fstab: any other is
	// private to an instance and mounted by firsthop itself.
	BPFFS string

	// StateDir is the host directory with the last known good addresses; ""
	// is instance.DefaultStateDir.
	StateDir string

	// BinarySource is the file to copy to [BinaryPath] (as it is reachable
	// from here, usually /proc/self/exe); "" leaves the host's copy as it is.
	BinarySource string

	// Args follow the binary in the unit; nil means "init --boot" and the
	// directories that are not the default. They are taken literally: no
	// specifiers, no variables.
	Args []string

	// Offline says that what is below Root does not run: what is installed there
	// decides who will start things, and nobody is asked.
	Offline bool

	// Record is called before each change with what is about to change; an
	// error from it stops everything. nil means no recording.
	Record func(kind instance.Kind, target, former string) error

	// Owned says whether the record has such a change of ours. It decides
	// about what carries no marker of its own: directories that we created
	// and a packaged unit that we enabled. nil means that there is no record:
	// then only directories below /opt/firsthop are ours.
	Owned func(kind instance.Kind, target string) bool

	// Log receives what is done, at debug level; nil is silent.
	Log *slog.Logger

	// What follows is for tests.

	// initSystem is who starts things at boot; nil means [DetectInit].
	initSystem *Init
	// manager talks to the init system; nil means [OpenManager]'s choice. Who
	// gives one closes it.
	manager Manager
	// sockets are the D-Bus sockets to try, as they are reachable from here
	// (Root is not put before them). nil means systemd's private socket and
	// the system bus below Root. Empty but not nil means none: files only.
	sockets []string
	// statfs is instead of statfs(2).
	statfs func(string) (fsState, error)
}

// withDefaults returns a copy of c with the zero values filled in, or says
// which value can not be written into a unit file.
func (c Config) withDefaults() (Config, error) {
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&c.BPFFS, DefaultBPFFS)
	def(&c.StateDir, instance.DefaultStateDir)
	if c.Args == nil {
		c.Args = []string{"init", "--boot"}
		if c.StateDir != instance.DefaultStateDir {
			c.Args = append(c.Args, "--state-dir", c.StateDir)
		}
		if c.BPFFS != DefaultBPFFS {
			c.Args = append(c.Args, "--bpffs", c.BPFFS)
		}
	}
	if c.Record == nil {
		c.Record = func(instance.Kind, string, string) error { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.statfs == nil {
		root := c.Root
		c.statfs = func(at string) (fsState, error) { return statfs(root, at) }
	}
	for _, p := range []string{c.BPFFS, c.StateDir} {
		if err := checkPath(p); err != nil {
			return c, err
		}
	}
	for _, a := range c.Args {
		if !utf8.ValidString(a) || strings.ContainsRune(a, 0) {
			return c, fmt.Errorf("argument %q: a unit file holds UTF-8 text without NUL only", a)
		}
	}
	return c, nil
}

// checkPath accepts what every place that we write paths to can hold:
// ConditionPathExists= knows no quoting, so no control characters and no
// backslash (a last one would continue the line).
func checkPath(p string) error {
	bad := func(r rune) bool { return unicode.IsControl(r) || r == '\\' }
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/":
		return fmt.Errorf("path %q: give an absolute path without . or .. in it", p)
	case !utf8.ValidString(p) || strings.ContainsFunc(p, bad):
		return fmt.Errorf("path %q: a unit file can not hold control characters or backslashes in a path", p)
	}
	return nil
}
