// Command image makes firsthop's container image: for all architectures that it is given a binary of, from nothing but
// these binaries and the licenses, and without a container daemon. make image calls it.
//
// What it writes depends on what it is given and on nothing else: no clock, no user, no umask, no path.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firsthop/firsthop/deploy/build/licenses"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	c := Config{Binaries: make(map[string]string)}
	flags.Func("binary", "`ARCH=FILE` of a binary, as amd64=bin/firsthop; repeatable", func(s string) error {
		arch, file, ok := strings.Cut(s, "=")
		if !ok || arch == "" || file == "" {
			return errors.New("want ARCH=FILE")
		}
		if _, had := c.Binaries[arch]; had {
			return fmt.Errorf("%s is given twice", arch)
		}
		c.Binaries[arch] = file
		return nil
	})
	flags.Func("license", "`FILE` that goes to /usr/share/doc/firsthop; repeatable", func(s string) error {
		c.Licenses = append(c.Licenses, s)
		return nil
	})
	repository := flags.String("repository", "", "`DIR` of the product's module, whose modules' licenses go there, too")
	flags.StringVar(&c.Name, "name", "", "the image's `NAME`, without a tag")
	flags.StringVar(&c.Version, "version", "", "`VERSION`, also the tag")
	flags.StringVar(&c.Revision, "revision", "", "`COMMIT` that the binaries are of")
	epoch := flags.Int64("source-date-epoch", 0, "`SECONDS` since 1970 of that commit, for every time in the image")
	dir := flags.String("out", "", "`DIR` that the image goes to; what is of an earlier image in it is replaced")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || *repository == "" || flags.NArg() > 0 {
		return errors.New("want -out DIR, -repository DIR, and only flags")
	}
	var err error
	if c.ThirdParty, err = licenses.ThirdParty(context.Background(), *repository); err != nil {
		return err
	}
	c.Created = time.Unix(*epoch, 0).UTC()
	image, err := Build(c)
	if err != nil {
		return err
	}
	if err := image.Write(*dir); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s:%s@%s\n", c.Name, image.Tag, image.Digest)
	for _, p := range image.Platforms {
		fmt.Fprintf(out, "  %-12s %s  %.1f MB\n", p.Name, p.Digest, float64(p.Size)/1e6)
	}
	fmt.Fprintf(out, "  %s: podman load -i, ctr images import, skopeo copy oci-archive:\n", filepath.Join(*dir, archiveName))
	return nil
}
