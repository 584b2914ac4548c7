package units

import (
	"context"
	"os"
	"strings"
)

// fakeSystemd is a running systemd: unlike the files alone it has read the
// unit files at some moment, and goes by that until it is told to reload.
type fakeSystemd struct {
	files
	read    map[string]State  // as of the last reload
	content map[string]string // of the unit files then
	active  map[string]bool
	reloads int
}

var _ Manager = (*fakeSystemd)(nil)

func newFake(root string, version int) *fakeSystemd {
	return &fakeSystemd{files: files{t: newTree(Config{Root: root}), version: version},
		read: map[string]State{}, content: map[string]string{}, active: map[string]bool{}}
}

func (f *fakeSystemd) Version(context.Context) (string, error) { return "252.38-1~deb12u1", nil }

func (f *fakeSystemd) text(name string) string {
	n, at, _ := f.find(name)
	return at + "\n" + n.link + "\n" + string(n.data)
}

func (f *fakeSystemd) Reload(context.Context) error {
	f.reloads++
	clear(f.read)
	clear(f.content)
	return nil
}

// State reads a unit at its first mention, as systemd does, and keeps it.
func (f *fakeSystemd) State(ctx context.Context, name string) (State, error) {
	now, err := f.files.State(ctx, name)
	if err != nil {
		return State{}, err
	}
	s, known := f.read[name]
	if !known || s.LoadState == "not-found" { // which systemd tries again when directories change
		f.read[name], f.content[name] = now, f.text(name)
		s = now
	}
	s.UnitFileState = now.UnitFileState // asked of the files at each time
	s.NeedDaemonReload = f.content[name] != f.text(name)
	s.ActiveState = "inactive"
	if f.active[name] {
		s.ActiveState = "active"
	}
	return s, nil
}

func (f *fakeSystemd) Stop(_ context.Context, name string) error {
	delete(f.active, name)
	return nil
}

// start is systemctl start, as far as a oneshot with RemainAfterExit goes.
func (f *fakeSystemd) start(name string) error {
	if s, err := f.State(context.Background(), name); err != nil || s.LoadState != "loaded" {
		return os.ErrInvalid
	}
	f.active[name] = strings.HasSuffix(name, ".service")
	return nil
}
