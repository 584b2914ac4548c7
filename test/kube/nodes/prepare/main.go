// Command prepare makes what package nodes needs: programs, a root file system, images. Tests would do it, too, but what
// they print is not seen before they end.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

func main() {
	if err := nodes.Prepare(context.Background(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "prepare nodes:", err)
		os.Exit(1)
	}
}
