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

// machine is the node of the demo: a lab with three API servers, whose addresses are not the Service IP.
type machine struct {
	lab       *lab.Lab
	authority *standin.Authority
	objects   *standin.Objects // what the API servers know
	servers   []*standin.APIServer
	pods      map[string]*pod
	dir       string // where commands run: holds ca.crt, kubeconfig, and bin with the programs of the demo
}

// onMachine makes the machine, calls fn, and removes the machine whatever happened, panics included.
func onMachine(firsthop string, fn func(*machine) error) (err error) {
	l, err := lab.Create()
	if err != nil {
		return err
	}
	m := &machine{lab: l, objects: standin.NewObjects(), pods: make(map[string]*pod), dir: l.Dir}
	defer func() {
		for _, s := range m.servers {
			if s != nil {
				s.Close()
			}
		}
		for _, p := range m.pods {
			p.close()
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

// linkPrograms gives firsthop and this program the names that commands call them by, whatever their files are called.
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

func (m *machine) startServers() (err error) {
	m.authority, err = standin.NewAuthority(netip.MustParseAddr(serviceIP4), netip.MustParseAddr(serviceIP6))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.dir, "ca.crt"), m.authority.PEM(), 0o600); err != nil {
		return err
	}
	m.servers = make([]*standin.APIServer, 3)
	for i := range m.servers {
		for _, addr := range serverAddrs(i) {
			if err := m.lab.AddAddr(netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen()).String()); err != nil {
				return err
			}
		}
		if err := m.startServer(i); err != nil {
			return err
		}
	}
	return nil
}

// serverAddrs are where API server number i listens.
func serverAddrs(i int) []netip.AddrPort {
	return []netip.AddrPort{
		netip.MustParseAddrPort(fmt.Sprintf("192.0.2.1%d:6443", i+1)),
		netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::1%d]:6443", i+1)),
	}
}

// startServer starts API server number i, which does not run.
func (m *machine) startServer(i int) error {
	s, err := standin.StartAPIServer(standin.APIServerConfig{
		Name: string(rune('a' + i)), Addrs: serverAddrs(i), Network: m.lab, Authority: m.authority, Objects: m.objects,
	})
	if err == nil {
		m.servers[i] = s
	}
	return err
}

// endpoints is the value of KUBERNETES_APISERVER_ENDPOINTS: all addresses of all servers.
func (m *machine) endpoints() string {
	var all []string
	for i := range m.servers {
		for _, a := range serverAddrs(i) {
			all = append(all, a.String())
		}
	}
	return strings.Join(all, ",")
}

func serviceIPsPorts() string {
	return fmt.Sprintf("%s:443,[%s]:443", serviceIP4, serviceIP6)
}

// command prepares a line as a user of the machine types it, with firsthop and demo on the PATH. Variables make firsthop
// work on this machine only.
func (m *machine) command(ctx context.Context, line string) *lab.Cmd {
	cmd := m.lab.Command(ctx, "/bin/sh", "-c", line)
	cmd.Dir = m.dir
	cmd.Env = append(cleanEnviron(os.Environ()),
		"PATH="+filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"),
		"FIRSTHOP_BPFFS="+m.lab.BPFFS,
		"FIRSTHOP_CGROUP="+m.lab.Cgroup,
		"FIRSTHOP_STATE_DIR="+m.lab.StateDir,
		"FIRSTHOP_RUN_DIR="+m.lab.RunDir,
		"KUBERNETES_SERVICE_IPS_PORTS="+serviceIPsPorts(),
		"KUBERNETES_APISERVER_ENDPOINTS="+m.endpoints(),
	)
	return cmd
}

// shell runs a line and returns what it prints.
func (m *machine) shell(ctx context.Context, line string) (string, error) {
	out, err := m.command(ctx, line).CombinedOutput()
	return strings.TrimRight(string(out), "\n"), err
}

// background starts a line whose output goes to a file of the machine's, and which ends with the machine at the latest.
func (m *machine) background(ctx context.Context, line, output string) (*lab.Cmd, error) {
	f, err := os.OpenFile(filepath.Join(m.dir, output), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := m.command(ctx, line)
	cmd.Stdout, cmd.Stderr = f, f
	return cmd, cmd.Start()
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

// cleanEnviron drops the variables that would send curl elsewhere, and the user's own settings of firsthop.
func cleanEnviron(env []string) []string {
	var kept []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasSuffix(strings.ToLower(name), "_proxy") && !strings.HasPrefix(name, "FIRSTHOP_") {
			kept = append(kept, e)
		}
	}
	return kept
}
