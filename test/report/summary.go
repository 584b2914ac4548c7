package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// readNotes returns what runs have noted.
func readNotes(path string) ([]note, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var notes []note
	for dec := json.NewDecoder(bytes.NewReader(data)); dec.More(); {
		var n note
		if err := dec.Decode(&n); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		notes = append(notes, n)
	}
	return notes, nil
}

func appendNotes(path string, notes []note) error {
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	for _, n := range notes {
		if err := enc.Encode(n); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(data.Bytes()); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// remedies says what runs a test that was left out, by words of its reason.
var remedies = []struct{ word, command string }{
	{"make test-", ""}, // the reason names the command
	{"needs root", "sudo env PATH=$PATH make test"},
	{"FIRSTHOP_TEST_KUBE_BIN", "make test"},
	{"is not installed", "make setup, then make test"},
	{"needs Linux", "make test-vm"},
}

// remedy is what runs a test, behind its reason.
func remedy(why string) string {
	for _, r := range remedies {
		if strings.Contains(why, r.word) && r.command != "" {
			return ": " + r.command
		} else if strings.Contains(why, r.word) {
			return ""
		}
	}
	return ""
}

// summarize says how many tests passed or failed, how many were left out, and what runs these.
func summarize(out io.Writer, notes []note) {
	ran := make(map[[2]string]bool)
	for _, n := range notes {
		if !n.LeftOut {
			ran[[2]string{n.Package, n.Test}] = true
		}
	}
	left := make(map[string]map[[2]string]bool) // tests by reason
	seen := make(map[[2]string]bool)
	for _, n := range notes {
		id := [2]string{n.Package, n.Test}
		if ran[id] || seen[id] {
			continue
		}
		seen[id] = true
		why := n.Why + remedy(n.Why)
		if left[why] == nil {
			left[why] = make(map[[2]string]bool)
		}
		left[why][id] = true
	}
	if len(seen) == 0 {
		fmt.Fprintf(out, "\n%d tests ran, none was left out.\n", len(ran))
		return
	}
	fmt.Fprintf(out, "\n%d tests ran, %d were left out:\n", len(ran), len(seen))
	var reasons []string
	for why := range left {
		reasons = append(reasons, why)
	}
	slices.SortFunc(reasons, func(a, b string) int {
		if n := len(left[b]) - len(left[a]); n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	for _, why := range reasons {
		fmt.Fprintf(out, "%6d  %s (%s)\n", len(left[why]), why, packages(left[why]))
	}
}

// packages names the packages of tests, by the last parts of their paths.
func packages(tests map[[2]string]bool) string {
	var names []string
	for id := range tests {
		name := strings.TrimPrefix(id[0], "github.com/firsthop/firsthop/")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more packages", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
