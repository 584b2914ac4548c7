package kubeproxy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// legacyChains are the chains that only kube-proxy makes.
var legacyChains = [...]string{servicesChain, "KUBE-NODEPORTS", "KUBE-PROXY-CANARY"}

// legacy looks at iptables-legacy's tables of a family.
//
// A table comes into being with the first question about it, and so does its
// module (x_tables.c, xt_find_table_lock). So the list of those that exist is
// read first, and others are not asked for.
func (d *Detector) legacy(fam family, f *frontends) Evidence {
	e := Evidence{Source: SourceLegacy + " " + fam.name, Found: No, Detail: "none"}
	unreadable := func(err error) Evidence {
		f.markIncomplete(fam)
		e.Found, e.Detail = Unknown, err.Error()
		return e
	}
	list := fam.name + "_tables_names"
	names, err := os.ReadFile(filepath.Join(d.net, list))
	if errors.Is(err, fs.ErrNotExist) && exists(d.net) {
		e.Detail = fam.name + "_tables is not loaded"
		return e
	}
	if err != nil {
		return unreadable(err)
	}
	tables := slices.DeleteFunc([]string{"nat", "filter"}, func(table string) bool {
		return !slices.Contains(strings.Fields(string(names)), table)
	})
	if len(tables) == 0 {
		return e
	}
	s, err := openLegacy(fam)
	if err != nil {
		return unreadable(err)
	}
	defer unix.Close(s.fd)
	version := ""
	for _, table := range tables {
		info, err := s.info(table)
		if err != nil {
			version = ""
			break
		}
		version += fmt.Sprint(info)
	}
	return d.once(e.Source, version, f, func(f *frontends) Evidence {
		var found []string
		for _, table := range tables {
			chains, err := s.chains(table, f)
			switch {
			case err != nil:
				f.markIncomplete(fam)
				if e.Found == No {
					e.Found = Unknown
				}
				found = append(found, fmt.Sprintf("could not read %s: %v", table, err))
			case len(chains) > 0:
				e.Found = Yes
				found = append(found, chains...)
			}
		}
		if len(found) > 0 {
			e.Detail = strings.Join(found, ", ")
		}
		return e
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// chains names kube-proxy's chains in a table that exists, and adds what they serve.
func (s legacySocket) chains(table string, f *frontends) ([]string, error) {
	t, err := s.read(table)
	if err != nil {
		return nil, err
	}
	defer t.close()
	parsed, err := t.parse()
	if err != nil {
		return nil, err
	}
	var found []string
	for i, chain := range legacyChains {
		if !parsed.found[i] {
			continue
		}
		name := table + " " + chain
		if table == "nat" && chain == servicesChain && f.wants(s.family) {
			name += addFromChain(f, s.family, parsed.rules, parsed.hooked)
		}
		found = append(found, name)
	}
	return found, nil
}
