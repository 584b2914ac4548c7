// Command packages builds firsthop's .deb and .rpm packages from binaries that are there. make packages calls it.
//
// What it writes depends on its flags, the repository's files and the modules that the program is linked with alone: two
// runs write the same bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("packages", flag.ExitOnError)
	archs := flags.String("arch", "amd64 arm64", "architectures, separated by blanks; one must be this machine's")
	repository := flags.String("repository", ".", "the repository's directory")
	binaries := flags.String("binaries", "", "directory with linux-ARCHITECTURE/firsthop for each architecture")
	out := flags.String("out", "", "directory to write to")
	version := flags.String("version", "", "as git describe --tags --always --dirty has it")
	epoch := flags.Int64("epoch", 0, "SOURCE_DATE_EPOCH: the time of everything in the packages, in seconds since 1970")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *binaries == "" || *out == "" || *version == "" || *epoch <= 0 {
		return errors.New("build packages: want -binaries, -out, -version and -epoch")
	}
	b := Build{Repository: *repository, Version: *version, Time: time.Unix(*epoch, 0).UTC()}
	for arch := range strings.FieldsSeq(*archs) {
		b.Programs = append(b.Programs, Program{Arch: arch, Path: filepath.Join(*binaries, "linux-"+arch, "firsthop")})
	}
	files, err := b.WriteTo(ctx, *out)
	for _, file := range files {
		fmt.Println(file)
	}
	return err
}
