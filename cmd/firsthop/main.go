// Command firsthop gets a Kubernetes node onto an eBPF service dataplane with
// no manual step and no kube-proxy.
//
// init, run, install and uninstall change the node; cluster install and cluster
// uninstall change all nodes; the other commands only read. What firsthop is
// told by flags and environment variables is read here: other packages get it
// as a value.
package main

import (
	"context"
	"os"
	"runtime/debug"
)

// memoryLimit is how much this program may use before garbage is collected.
// All commands but run (collectGarbage) live for milliseconds and make some
// 10 MiB of it; to collect that would be a good part of their work.
const memoryLimit = 32 << 20

func main() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	os.Exit(run(context.Background(), osEnv(), os.Args))
}
