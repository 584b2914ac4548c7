package main

import (
	"errors"
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
	t.showFirst(announced, 4)
	if _, err := t.do("firsthop uninstall --force > removed.txt"); err != nil {
		return err
	}
	removed, err := os.ReadFile(filepath.Join(t.machine.dir, "removed.txt"))
	if err != nil {
		return err
	}
	done := things(string(removed), "removed")
	if err := sameThings(things(announced, "would remove"), done); err != nil {
		return fmt.Errorf("uninstall did not do what it announced: %w", err)
	}
	if out, err := t.do(curl(serviceIP4)); err == nil {
		return fmt.Errorf("something still answers: %s", out)
	}
	if err := t.nothingIsLeft(); err != nil {
		return err
	}
	t.conclude("uninstall removed exactly the %d things that it announced: no BPF program, link, map, pin or file is left.",
		len(done))
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

// things returns what a verb of uninstall's output is followed by, sorted: "pin /sys/fs/bpf/firsthop/links/connect4", say.
// Long ones are wrapped in the output. The number of things, which the output begins with, is none of them.
func things(output, verb string) []string {
	var all []string
	for _, thing := range strings.Split(strings.Join(strings.Fields(output), " "), verb+" ")[1:] {
		if thing = strings.TrimSpace(thing); !strings.HasSuffix(thing, " things:") {
			all = append(all, thing)
		}
	}
	slices.Sort(all)
	return all
}

// sameThings wants both lists to be the same, and not empty.
func sameThings(announced, done []string) error {
	for _, thing := range announced {
		if !slices.Contains(done, thing) {
			return fmt.Errorf("not done: %q", thing)
		}
	}
	for _, thing := range done {
		if !slices.Contains(announced, thing) {
			return fmt.Errorf("not announced: %q", thing)
		}
	}
	if len(done) == 0 {
		return errors.New("nothing was announced")
	}
	return nil
}
