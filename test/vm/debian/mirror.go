// Package debian fetches packages of any Debian release with apt, without installing them and without touching the
// machine's own apt: its lists, state, cache and sources are the machine's no more than its package database is. What
// is fetched is verified with Debian's keyring and unpacked below a cache directory, once for every version.
package debian

import (
	"bufio"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Mirror is where a machine gets Debian's packages.
type Mirror struct {
	Main     string // of releases and backports
	Security string // of the suites whose names end in -security
}

// publicMirror serves machines that have no Debian mirror of their own, such as Ubuntu's.
var publicMirror = Mirror{Main: "http://deb.debian.org/debian", Security: "http://deb.debian.org/debian-security"}

// MirrorOf reads apt's sources below root, "" for the machine's own, so that a mirror close by is used for other
// releases too. Debian's mirrors are known by the last part of their address, which is the same everywhere.
func MirrorOf(root string) (Mirror, error) {
	files, err := filepath.Glob(filepath.Join(root, "/etc/apt/sources.list.d/*"))
	if err != nil {
		return Mirror{}, err
	}
	m := publicMirror
	for _, file := range append(files, filepath.Join(root, "/etc/apt/sources.list")) {
		data, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return Mirror{}, err
		}
		for _, uri := range sourceURIs(filepath.Ext(file), string(data)) {
			switch {
			case !strings.HasPrefix(uri, "http://") && !strings.HasPrefix(uri, "https://"):
			case path.Base(uri) == "debian":
				m.Main = strings.TrimSuffix(uri, "/")
			case path.Base(uri) == "debian-security":
				m.Security = strings.TrimSuffix(uri, "/")
			}
		}
	}
	return m, nil
}

// sourceURIs reads the addresses of one file, in apt's older form (.list) or its newer one (.sources).
func sourceURIs(ext, text string) []string {
	var uris []string
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
		case ext == ".sources" && strings.EqualFold(fields[0], "URIs:"):
			uris = append(uris, fields[1:]...)
		case ext == ".list" && fields[0] == "deb":
			if i := slices.IndexFunc(fields, func(f string) bool { return strings.Contains(f, "://") }); i > 0 {
				uris = append(uris, fields[i])
			}
		}
	}
	return uris
}

// at returns the mirror that has a suite.
func (m Mirror) at(suite string) string {
	if strings.HasSuffix(suite, "-security") {
		return m.Security
	}
	return m.Main
}
