// Command print makes sure that the programs of package binaries are there, and prints the directory that has them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/firsthop/firsthop/test/kube/binaries"
)

func main() {
	module := flag.String("module", ".", "a directory of the module whose go.mod names the version of Kubernetes")
	cache := flag.String("cache", "../../.cache/kube", "where to keep all of it")
	flag.Parse()
	if err := run(*module, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "get Kubernetes:", err)
		os.Exit(1)
	}
}

func run(module, cache string) error {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	p, err := binaries.Ensure(context.Background(), binaries.Config{Module: module, Cache: cache, Log: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Println(filepath.Dir(p.Etcd))
	return nil
}
