// Command packages builds firsthop's .deb and .rpm packages. make packages calls it.
package main

import (
	_ "github.com/goreleaser/nfpm/v2"

	_ "github.com/firsthop/firsthop/units"
)

func main() {}
