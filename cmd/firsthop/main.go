// Command firsthop gets a Kubernetes node onto an eBPF service dataplane with
// no manual step and no kube-proxy.
//
// Nouns read (check, status, doctor, discover, nat, units), verbs change (init,
// run, install, uninstall). What firsthop is told by flags and environment
// variables is read here: other packages get it as a value.
package main

import (
	"context"
	"os"
	"runtime/debug"
)

// memoryLimit is how much this program may use before garbage is collected.
// It lives for milliseconds and makes some 10 MiB of it; to collect that would
// be a good part of its work.
const memoryLimit = 32 << 20

func main() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	os.Exit(run(context.Background(), osEnv(), os.Args))
}
