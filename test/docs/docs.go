// Package docs reads the documentation as its users do: page by page, command by command.
//
// A fenced block of commands says who runs it, behind its language:
//
//	```sh test=ha on=n2
//	sh join.sh
//	```
//
// is a step of the test "ha", on node n2 (else n1); the blocks of one test are run in the order of their page. One that
// no test can run says why by a key of NotRun: not-run=KEY.
package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Runs are the tests of blocks, and the package that runs them.
var Runs = map[string]string{
	"build":            "test/kube/scenes",
	"get":              "test/kube/scenes",
	"readme":           "test/kube/scenes",
	"kubeadm-new":      "test/kube/scenes",
	"upgrade":          "test/kube/scenes",
	"rollback":         "test/kube/scenes",
	"leaving":          "test/kube/scenes",
	"kubeadm-existing": "test/kube/scenes",
	"manifests":        "test/kube/scenes",
	"helm":             "test/kube/scenes",
	"before-kubeadm":   "test/kube/scenes",
	"ha":               "test/kube/scenes",
	"bare-metal":       "test/kube/scenes",
}

// NotRun says why a block is run by no test.
var NotRun = map[string]string{
	"demo":           "make demo is a test of its own (package test/demo), and uses the network of the machine",
	"no-ssh":         "the nodes of test/kube/nodes have no ssh: the test copies the files",
	"k3s":            "k3s is not built by the tests",
	"packages":       "packages are installed and removed in virtual machines, by test/vm/boot",
	"upgrade-host":   "packages of two versions are installed in virtual machines, by test/vm/boot",
	"host":           "firsthop uninstall is run by test/kube/scenes, on a node without a DaemonSet",
	"needs-an-image": "an image of a host is not there: cmd/firsthop tests install in a root of its own",
	"last":           "it is what docs/leaving.md has, whose commands are run",
	"developers":     "targets of the Makefile, which are themselves the tests",
}

// Block is a fenced block of a page.
type Block struct {
	Page     string // relative to the repository
	Line     int    // of its text
	Language string
	Test     string // what runs it, "": nothing
	Node     string // where
	NotRun   string // why not, a key
	Text     string
}

// Pages are the files of the documentation, relative to the repository.
func Pages(repository string) ([]string, error) {
	pages := []string{"README.md", "CHANGELOG.md"}
	err := filepath.WalkDir(filepath.Join(repository, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			var page string
			page, err = filepath.Rel(repository, path)
			pages = append(pages, page)
		}
		return err
	})
	return pages, err
}

// Blocks are the fenced blocks of a page.
func Blocks(repository, page string) ([]Block, error) {
	text, err := os.ReadFile(filepath.Join(repository, page))
	if err != nil {
		return nil, err
	}
	var blocks []Block
	var open *Block
	for i, line := range strings.Split(string(text), "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && open == nil:
			open = &Block{Page: page, Line: i + 2, Node: "n1"}
			for n, word := range strings.Fields(fence) {
				key, value, _ := strings.Cut(word, "=")
				switch {
				case n == 0:
					open.Language = word
				case key == "test":
					open.Test = value
				case key == "on":
					open.Node = value
				case key == "not-run":
					open.NotRun = value
				default:
					return nil, fmt.Errorf("%s:%d: %s is none of test, on and not-run", page, i+1, word)
				}
			}
		case isFence:
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.Text += line + "\n"
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s:%d: the block has no end", page, open.Line)
	}
	return blocks, nil
}

// Of are the blocks of a test, in the order of pages and lines.
func Of(repository, test string) ([]Block, error) {
	pages, err := Pages(repository)
	if err != nil {
		return nil, err
	}
	var list []Block
	for _, page := range pages {
		blocks, err := Blocks(repository, page)
		if err != nil {
			return nil, err
		}
		list = append(list, slices.DeleteFunc(blocks, func(b Block) bool { return b.Test != test })...)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no page has a block of the test %q", test)
	}
	return list, nil
}
