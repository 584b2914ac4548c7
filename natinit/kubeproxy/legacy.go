package kubeproxy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// legacy looks at iptables-legacy's tables of a family.
//
// A table comes into being with the first question about it, and so does its
// module (x_tables.c, xt_find_table_lock). So the list of those that exist is
// read first, and others are not asked for.
func (d detector) legacy(fam family, f *frontends) Evidence {
	e := Evidence{Source: SourceLegacy + " " + fam.name, Found: No, Detail: "none"}
	list := fam.name + "_tables_names"
	names, err := os.ReadFile(filepath.Join(d.net, list))
	if errors.Is(err, fs.ErrNotExist) && exists(d.net) {
		e.Detail = fam.name + "_tables is not loaded"
		return e
	}
	if err != nil {
		f.markIncomplete(fam)
		e.Found, e.Detail = Unknown, err.Error()
		return e
	}
	var found []string
	for _, table := range []string{"nat", "filter"} {
		if !slices.Contains(strings.Fields(string(names)), table) {
			continue
		}
		chains, err := lookAtLegacyTable(fam, table, f)
		if err != nil {
			f.markIncomplete(fam)
			if e.Found != Yes {
				e.Found = Unknown
			}
			found = append(found, fmt.Sprintf("could not read %s: %v", table, err))
			continue
		}
		if len(chains) > 0 {
			e.Found = Yes
			found = append(found, chains...)
		}
	}
	if len(found) > 0 {
		e.Detail = strings.Join(found, ", ")
	}
	return e
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// legacyChains are the chains that only kube-proxy makes.
var legacyChains = [...]string{servicesChain, "KUBE-NODEPORTS", "KUBE-PROXY-CANARY"}

// lookAtLegacyTable names kube-proxy's chains in a table that exists.
func lookAtLegacyTable(fam family, table string, f *frontends) ([]string, error) {
	t, err := readLegacyTable(fam, table)
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
		if table == "nat" && chain == servicesChain {
			name += " (" + addFromChain(f, fam, parsed.rules, parsed.hooked) + ")"
		}
		found = append(found, name)
	}
	return found, nil
}
