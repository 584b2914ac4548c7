package units

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/units/unitfile"
)

// systemDir is where units of the administrator are, and ours.
const systemDir = "/etc/systemd/system"

// searchPath is where systemd looks for units, first hit wins. Of the list in
// systemd.unit(5), "Unit File Load Path", these can hold a unit of ours or a mask.
var searchPath = []string{systemDir, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// files is the Manager for a host whose systemd can't be asked: what systemctl
// --root does to the links, and what systemd would make of the files.
type files struct {
	t       tree
	version int // of systemd; 0 unknown
}

var _ Manager = (*files)(nil)

func (*files) Close()                                  {}
func (*files) Version(context.Context) (string, error) { return "", nil }
func (*files) Reload(context.Context) error            { return nil }
func (*files) Stop(context.Context, string) error      { return nil }

func (m *files) State(_ context.Context, name string) (State, error) {
	n, at, err := m.find(name)
	switch {
	case err != nil:
		return State{}, err
	case at == "":
		return State{LoadState: "not-found"}, nil
	case n.isMasked():
		// FragmentPath is of the mask itself, as systemd has it.
		s := State{LoadState: "masked", UnitFileState: "masked", FragmentPath: at}
		if strings.HasPrefix(at, "/run/") {
			s.UnitFileState = "masked-runtime"
		}
		return s, nil
	}
	s := State{LoadState: "loaded", FragmentPath: at}
	if m.refused(name) {
		s.LoadState = "bad-setting"
	}
	switch {
	case len(m.links(name)) > 0:
		s.UnitFileState = "enabled"
	case len(installSection(n.data)) == 0:
		s.UnitFileState = "static"
	default:
		s.UnitFileState = "disabled"
	}
	return s, nil
}

// refused says whether systemd takes the name for an API file system.
func (m *files) refused(name string) bool {
	return name == MountUnitName(DefaultBPFFS) && m.version >= apiBPFFS
}

// find returns the unit file that systemd would load, with the links on the
// way followed as far as we need it; at is "" when there is none.
func (m *files) find(name string) (n node, at string, err error) {
	return m.findIn(searchPath, name)
}

// findIn is find for some of the directories.
func (m *files) findIn(dirs []string, name string) (n node, at string, err error) {
	for _, dir := range dirs {
		at = path.Join(dir, name)
		n, err = m.t.look(at)
		if err != nil || n.exists {
			break
		}
		at = ""
	}
	if err == nil && n.isLink() && !n.isMasked() { // systemctl link, or a distribution's /lib
		target := n.link
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(at), target)
		}
		if n, err = m.t.look(target); err == nil && !n.exists {
			return node{}, "", nil
		}
	}
	if at != "" && n.mode.IsRegular() && len(n.data) == 0 { // an empty file masks as well
		n.mode, n.link = fs.ModeSymlink, "/dev/null"
	}
	return n, at, err
}

// links lists the links below systemDir that enable a unit.
func (m *files) links(name string) []string {
	var found []string
	for _, dir := range m.t.names(systemDir) {
		if !strings.HasSuffix(dir, ".wants") && !strings.HasSuffix(dir, ".requires") {
			continue
		}
		link := path.Join(systemDir, dir, name)
		if n, err := m.t.lstat(link); err == nil && n.isLink() {
			found = append(found, link)
		}
	}
	slices.Sort(found)
	return found
}

func (m *files) Enable(_ context.Context, name string) error {
	n, at, err := m.find(name)
	switch {
	case err != nil:
		return fmt.Errorf("enable %s: %w", name, err)
	case at == "":
		return fmt.Errorf("enable %s: %w", name, ErrNotFound)
	case n.isMasked():
		return fmt.Errorf("enable %s: %w by %s", name, ErrMasked, at)
	}
	for _, dir := range installSection(n.data) {
		if err := m.link(path.Join(systemDir, dir, name), at); err != nil {
			return fmt.Errorf("enable %s: %w", name, err)
		}
	}
	return nil
}

func (m *files) link(link, target string) error {
	n, err := m.t.lstat(link)
	if err != nil || n.isLink() { // wherever it points: systemd goes by its name alone
		return err
	}
	if n.exists {
		return fmt.Errorf("make link %s: %w, and a file is there", link, ErrForeign)
	}
	dir := path.Dir(n.at)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(target, n.at); err != nil {
		return err
	}
	return syncDir(dir)
}

func (m *files) Disable(_ context.Context, name string) error {
	for _, link := range m.links(name) {
		at, err := m.t.file(link)
		if err != nil {
			return err
		}
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("disable %s: %w", name, err)
		}
		// As systemctl: a directory that is empty now goes as well.
		_ = os.Remove(path.Dir(at))
	}
	return nil
}

// installSection returns the directories of links that a unit file asks for:
// "multi-user.target.wants". Alias= and Also= are not ours and not followed;
// what is no unit name is left out, as systemctl does with a warning.
func installSection(data []byte) []string {
	var dirs []string
	for _, o := range unitfile.Parse(string(data)) {
		suffix := map[string]string{"WantedBy": ".wants", "RequiredBy": ".requires"}[o.Key]
		if o.Section != "Install" || suffix == "" {
			continue
		}
		if o.Value == "" { // an empty assignment takes back the ones before it
			dirs = slices.DeleteFunc(dirs, func(d string) bool { return strings.HasSuffix(d, suffix) })
		}
		for target := range strings.FieldsSeq(o.Value) {
			if !strings.Contains(target, "/") {
				dirs = append(dirs, target+suffix)
			}
		}
	}
	return dirs
}
