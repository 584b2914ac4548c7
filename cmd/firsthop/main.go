// Command firsthop gets a Kubernetes node onto an eBPF service dataplane with
// no manual step and no kube-proxy.
//
// Nouns read (check, status, discover, nat, units), verbs change (init,
// install, uninstall). Environment variables are read here and nowhere else.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), osEnv(), os.Args))
}
