package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// Distribution is what os-release(5) says about the host's user space. It is
// for words, and one piece of evidence for RHEL; it never decides alone, for
// an image's os-release is not the host's.
type Distribution struct {
	File       string   `json:"file,omitempty"` // where it was read
	ID         string   `json:"id,omitempty"`
	IDLike     []string `json:"id_like,omitempty"`
	VersionID  string   `json:"version_id,omitempty"`
	PrettyName string   `json:"pretty_name,omitempty"`
}

// Is tells whether the distribution is one of the ids or derived from one.
func (d Distribution) Is(ids ...string) bool {
	for _, id := range ids {
		if d.ID == id {
			return true
		}
		for _, like := range d.IDLike {
			if like == id {
				return true
			}
		}
	}
	return false
}

// readDistribution reads os-release below root: /etc first, then /usr/lib,
// as os-release(5) orders them. An absolute symbolic link in the tree (Nix,
// some images) points out of it, so links are resolved below root.
func readDistribution(root string) (Distribution, error) {
	var errs []error
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := hostfs.FS{Root: root}.ReadFile(name)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("read os-release of the host: %v", err))
			}
			continue
		}
		values, err := ParseOSRelease(string(text))
		d := Distribution{
			File:       name,
			ID:         values["ID"],
			IDLike:     strings.Fields(values["ID_LIKE"]),
			VersionID:  values["VERSION_ID"],
			PrettyName: values["PRETTY_NAME"],
		}
		if d.ID == "" {
			d.ID = "linux" // os-release(5): the default
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read %s of the host: %v", name, err))
		}
		return d, errors.Join(errs...)
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("find os-release of the host: neither /etc/os-release nor /usr/lib/os-release is there"))
	}
	return Distribution{}, errors.Join(errs...)
}

// ParseOSRelease reads the assignments of an os-release file under the rules
// of os-release(5): shell-like, with quotes and backslashes, without
// expansion. The values of good lines are returned beside the error that
// names the bad ones.
func ParseOSRelease(text string) (map[string]string, error) {
	values := make(map[string]string)
	var errs []error
	parser := syntax.NewParser(syntax.Variant(syntax.LangPOSIX))
	for i, line := range strings.Split(text, "\n") {
		name, value, err := assignment(parser, strings.TrimSpace(line))
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %v in %.60q", i+1, err, line))
		} else if name != "" {
			values[name] = value // a later line wins, as in a shell
		}
	}
	return values, errors.Join(errs...)
}

// assignment reads a line; name is empty where it has nothing but a comment.
func assignment(parser *syntax.Parser, line string) (name, value string, err error) {
	file, err := parser.Parse(strings.NewReader(line), "")
	if err != nil || len(file.Stmts) == 0 {
		return "", "", err
	}
	call, ok := file.Stmts[0].Cmd.(*syntax.CallExpr)
	if !ok || len(file.Stmts) > 1 || len(call.Args) > 0 || len(call.Assigns) != 1 || strings.HasSuffix(line, `\`) || strings.Contains(line, "{") { // braces would be expanded
		return "", "", errors.New("want NAME=value")
	}
	var words []string
	if v := call.Assigns[0].Value; v != nil {
		words, err = expand.Fields(nil, v)
	}
	return call.Assigns[0].Name.Value, strings.Join(words, " "), err
}
