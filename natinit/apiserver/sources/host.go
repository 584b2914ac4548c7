package sources

import (
	"errors"
	"io/fs"
	"net/netip"
	"sync"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// host is what the sources read of a node. How its services are started is
// read once for all of them.
type host struct {
	nodeconf.FS
	root     string
	commands func() []nodeconf.Command
	// address gives the node's address on its default route, see defaultAddress.
	address func() (netip.Addr, bool)
}

func newHost(root string) *host {
	h := &host{root: root}
	h.FS = nodeconf.Trusted(root)
	h.commands = sync.OnceValue(func() []nodeconf.Command { return nodeconf.Commands(h) })
	h.address = func() (netip.Addr, bool) { return defaultAddress(root) }
	return h
}

func (h *host) exists(path string) bool { return exists(h.root, path) }

// addKubeconfig is the Finding's, without a walk for what is not there: most of what is looked for is not.
func (h *host) addKubeconfig(f *Finding, path string) bool {
	if _, err := h.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return f.addKubeconfig(h.root, path)
}

// running lists how services of the host run a program.
func (h *host) running(name string) []nodeconf.Invocation {
	return nodeconf.Running(h.commands(), name)
}

// readFile reads a file of the host that only root may write: what it says decides which API servers this node
// believes.
func readFile(root, path string) ([]byte, error) { return hostfs.FS{Root: root}.ReadTrusted(path) }

// exists reports whether the host has something at path.
func exists(root, path string) bool { return hostfs.FS{Root: root}.Exists(path) }

// glob lists the host's paths that match, in lexical order.
func glob(root, pattern string) []string { return hostfs.FS{Root: root}.Glob(pattern) }
