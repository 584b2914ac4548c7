package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

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
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, quoted, ok := strings.Cut(line, "=")
		if !ok || !isName(name) {
			errs = append(errs, fmt.Errorf("line %d: want NAME=value, have %.60q", i+1, line))
			continue
		}
		value, err := unquote(quoted)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %v in %.60q", i+1, err, line))
			continue
		}
		values[name] = value // a later line wins, as in a shell
	}
	return values, errors.Join(errs...)
}

func isName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// unquote takes the quotes off a shell word. In double quotes a backslash
// escapes only " $ ` and itself; in single quotes nothing does.
func unquote(s string) (string, error) {
	var out strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				out.WriteByte(c)
			}
		case c == '\\':
			if i++; i == len(s) {
				return "", errors.New("a backslash at the end")
			}
			if quote == '"' && !strings.ContainsRune("\"$`\\", rune(s[i])) {
				out.WriteByte('\\')
			}
			out.WriteByte(s[i])
		case quote == '"' && c == '"':
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && (c == ' ' || c == '\t'):
			if rest := strings.TrimSpace(s[i:]); rest != "" && rest[0] != '#' {
				return "", errors.New("a blank outside quotes")
			}
			return out.String(), nil
		default:
			out.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", errors.New("a quote that is not closed")
	}
	return out.String(), nil
}
