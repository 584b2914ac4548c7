package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func (t *teller) uninstallRemovesAll() error {
	t.title("Stop and uninstall")
	if err := t.stopClient(); err != nil {
		return err
	}
	t.typed("kill " + fmt.Sprint(t.runtime.Process.Pid))
	if err := t.endRuntime(unix.SIGTERM); err != nil {
		return fmt.Errorf("firsthop run was asked to end: %w", err)
	}
	if _, err := t.do("curl -sS http://" + shopIP + "/"); err != nil {
		return fmt.Errorf("a runtime that ends takes the Services along: %w", err)
	}
	out, err := t.do("firsthop uninstall")
	if err == nil {
		return fmt.Errorf("uninstall removed what alone serves the API service: %s", out)
	}
	t.say("uninstall refuses while nothing else serves this node. --force overrides that.")
	const dryRun = "firsthop uninstall --force --dry-run"
	t.typed(dryRun)
	announced, err := t.machine.shell(t.ctx, dryRun)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", dryRun, err, announced)
	}
	t.showFirst(announced, 3)
	if _, err := t.do("firsthop uninstall --force > removed.txt"); err != nil {
		return err
	}
	removed, err := os.ReadFile(filepath.Join(t.machine.dir, "removed.txt"))
	if err != nil {
		return err
	}
	if err := sameLines(strings.ReplaceAll(announced, "would remove", "removed"), string(removed)); err != nil {
		return fmt.Errorf("uninstall did not do what it announced: %w", err)
	}
	if out, err := t.do(curl(serviceIP4)); err == nil {
		return fmt.Errorf("something still answers: %s", out)
	}
	if err := t.nothingIsLeft(); err != nil {
		return err
	}
	t.conclude("uninstall removed exactly the %d things that it announced: no BPF program, link, map, pin or file is left.",
		strings.Count(string(removed), "removed"))
	return nil
}

// nothingIsLeft compares with what was there before init.
func (t *teller) nothingIsLeft() error {
	leaks, err := t.before.ObjectLeaks()
	if err != nil {
		return err
	}
	files, err := t.machine.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if !slices.Contains(t.filesBefore, f) {
			leaks = append(leaks, f)
		}
	}
	if len(leaks) > 0 {
		return fmt.Errorf("uninstall left behind:\n  %s", strings.Join(leaks, "\n  "))
	}
	return nil
}

// sameLines compares texts as sets of lines.
func sameLines(a, b string) error {
	lines := func(s string) []string {
		l := strings.Split(strings.TrimSpace(s), "\n")
		slices.Sort(l)
		return l
	}
	la, lb := lines(a), lines(b)
	for _, pair := range []struct {
		in, missing []string
		what        string
	}{{la, lb, "not done"}, {lb, la, "not announced"}} {
		for _, line := range pair.in {
			if _, ok := slices.BinarySearch(pair.missing, line); !ok {
				return fmt.Errorf("%s: %q", pair.what, line)
			}
		}
	}
	return nil
}
