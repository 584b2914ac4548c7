package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

const (
	serviceIP4 = "10.96.0.1"
	serviceIP6 = "fd00:96::1"
)

// machine is the stage: a lab with three API servers that are not where the Service IP says.
type machine struct {
	lab     *lab.Lab
	servers []*standin.APIServer
	dir     string // where commands run: holds ca.crt, and bin with the programs of the story
}

// onMachine sets the stage, calls fn, and clears it whatever happened, panics included.
func onMachine(firsthop string, fn func(*machine) error) (err error) {
	l, err := lab.Create()
	if err != nil {
		return err
	}
	m := &machine{lab: l, dir: l.Dir}
	defer func() {
		for _, s := range m.servers {
			s.Close()
		}
		err = errors.Join(err, l.Close())
	}()
	if err := m.linkPrograms(firsthop); err != nil {
		return err
	}
	if err := m.startServers(); err != nil {
		return err
	}
	return fn(m)
}

// linkPrograms gives firsthop and this program the names that the story calls them by, whatever their files are called.
func (m *machine) linkPrograms(firsthop string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Join(m.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Symlink(firsthop, filepath.Join(bin, "firsthop")), os.Symlink(self, filepath.Join(bin, "demo")))
}

func (m *machine) startServers() error {
	ca, err := standin.NewAuthority(netip.MustParseAddr(serviceIP4), netip.MustParseAddr(serviceIP6))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.dir, "ca.crt"), ca.PEM(), 0o600); err != nil {
		return err
	}
	for i, name := range []string{"a", "b", "c"} {
		v4, v6 := fmt.Sprintf("192.0.2.1%d", i+1), fmt.Sprintf("2001:db8::1%d", i+1)
		if err := m.lab.AddAddr(v4+"/32", v6+"/128"); err != nil {
			return err
		}
		s, err := standin.StartAPIServer(standin.APIServerConfig{
			Name: name,
			Addrs: []netip.AddrPort{
				netip.AddrPortFrom(netip.MustParseAddr(v4), 6443),
				netip.AddrPortFrom(netip.MustParseAddr(v6), 6443),
			},
			Network:   m.lab,
			Authority: ca,
		})
		if err != nil {
			return err
		}
		m.servers = append(m.servers, s)
	}
	return nil
}

// endpoints is the value of KUBERNETES_APISERVER_ENDPOINTS: all addresses of all servers.
func (m *machine) endpoints() string {
	var all []string
	for _, s := range m.servers {
		for _, a := range s.Addrs {
			all = append(all, a.String())
		}
	}
	return strings.Join(all, ",")
}

func serviceIPsPorts() string {
	return fmt.Sprintf("%s:443,[%s]:443", serviceIP4, serviceIP6)
}

// shell runs a line as a user of the machine would type it, with firsthop and demo on the PATH, and returns what it
// prints.
func (m *machine) shell(ctx context.Context, line string) (string, error) {
	cmd := m.lab.Command(ctx, "/bin/sh", "-c", line)
	cmd.Dir = m.dir
	cmd.Env = append(withoutProxies(os.Environ()),
		"PATH="+filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"),
		"HERE="+strings.Join(m.lab.Flags(), " "),
		"KUBERNETES_SERVICE_IPS_PORTS="+serviceIPsPorts(),
		"KUBERNETES_APISERVER_ENDPOINTS="+m.endpoints(),
	)
	out, err := cmd.CombinedOutput()
	return strings.TrimRight(string(out), "\n"), err
}

// files lists what is in the directories that firsthop was given. Not all of it is firsthop's: the kernel itself puts
// maps.debug and progs.debug into every bpffs.
func (m *machine) files() ([]string, error) {
	var paths []string
	for _, dir := range []string{m.lab.BPFFS, m.lab.StateDir, m.lab.RunDir} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			paths = append(paths, path)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// withoutProxies drops the variables that would send curl elsewhere.
func withoutProxies(env []string) []string {
	var kept []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			kept = append(kept, e)
		}
	}
	return kept
}
