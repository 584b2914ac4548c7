package main

import (
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bpf"
)

type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
	Layout  int    `json:"table_layout"`
}

func versionCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "version",
		Usage:     "the version of this program and of its table layout",
		ArgsUsage: " ",
		Flags:     []cli.Flag{outputFlag()},
		Action:    func(c *cli.Context) error { return printVersion(e, c) },
	}
}

func printVersion(e env, c *cli.Context) error {
	p, err := newPrinter(e, c)
	if err != nil {
		return err
	}
	v := versionInfo{Version: version, Go: runtime.Version(), Arch: runtime.GOARCH, Layout: bpf.LayoutVersion}
	return p.print(v, func(p *printer) {
		p.linef("firsthop %s (table layout %d, %s, %s)", v.Version, v.Layout, v.Go, v.Arch)
	})
}
