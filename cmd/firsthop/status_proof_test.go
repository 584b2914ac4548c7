package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// killInProof kills a first init when all of its links are pinned, while it waits for a silent API server.
func (n node) killInProof() {
	n.Helper()
	cmd := n.command(n.Context(), nil, "init", "--service-ips", vip4, "--endpoints", blackhole, "--persist", "off", "--timeout", "400ms")
	if err := n.start(cmd); err != nil {
		n.Fatal(err)
	}
	lab.Await(n.T, "the links to be pinned", func() bool {
		entries, _ := os.ReadDir(n.pins().Links())
		return len(entries) == len(bpf.Hooks())
	})
	_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	if err := cmd.Wait(); err == nil {
		n.Fatal("the init ended before it was killed")
	}
	if got := len(n.attached()); got != len(bpf.Hooks()) {
		n.Fatalf("%d programs are attached after the kill", got)
	}
}

// noted reports whether the list of changes says that what is attached was never proven.
func (n node) noted() bool {
	n.Helper()
	data, err := os.ReadFile(filepath.Join(n.RunDir, instance.JournalName))
	if err != nil && !os.IsNotExist(err) {
		n.Fatal(err)
	}
	return strings.Contains(string(data), "unproven")
}

// TestStatusAfterAnInitKilledBeforeItsProof goes with the next run that can't prove it either, and stays with one that can.
func TestStatusAfterAnInitKilledBeforeItsProof(t *testing.T) {
	n := newNode(t)
	if err := n.Drop("192.0.2.66/32"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		line []string
		code bootstrap.ExitCode
	}{
		{"the same endpoints", []string{"--endpoints", blackhole}, bootstrap.ExitProof},
		{"others that don't answer", []string{"--endpoints", server4}, bootstrap.ExitProof},
		{"no endpoint at all", []string{"--root", n.Dir}, bootstrap.ExitNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.T = t
			before := n.state()
			n.killInProof()
			n.run("init", "--dry-run", "--service-ips", vip4, "--endpoints", server4, "--timeout", "50ms").exits(0)
			if got := len(n.attached()); got != len(bpf.Hooks()) || !n.noted() {
				t.Errorf("after a dry run %d programs are attached, noted: %t", got, n.noted())
			}
			n.run(append([]string{"init", "--service-ips", vip4, "--persist", "off", "--timeout", "50ms"}, tc.line...)...).exits(tc.code)
			lab.Await(t, "the links to detach", func() bool { return len(n.attached()) == 0 })
			if pins, err := natinit.Pinned(n.pins()); err != nil || len(pins) > 0 || n.noted() {
				t.Errorf("%v, pins %v, noted: %t", err, pins, n.noted())
			}
			n.stateUnchanged(before)
		})
	}
	t.Run("an init that succeeds", func(t *testing.T) {
		n.T = t
		n.killInProof()
		n.serving()
		n.init()
		n.checkServes()
		n.checkOneOfEach()
		if n.noted() {
			t.Error("it is still noted as unproven")
		}
		n.run(initArgs("--endpoints", "127.0.0.9:6443,[::1]:6449", "--timeout", "50ms")...).exits(bootstrap.ExitProof)
		n.checkServes() // proven once, it is not taken away
	})
}

// TestStatusTellsOfAFailureAndOfTheProofBefore, until the next success.
func TestStatusTellsOfAFailureAndOfTheProofBefore(t *testing.T) {
	n := newNode(t)
	n.serving()
	begin := time.Now()
	proof := n.init().Proofs[0].Time
	fail := func() {
		n.run(initArgs("--endpoints", "127.0.0.9:6443,[::1]:6449", "--timeout", "50ms")...).exits(bootstrap.ExitProof)
	}
	for range 2 { // the second failure doesn't make the proof forgotten
		fail()
		n.run("status").exits(0).says("serving, but the last init failed ", " at seed: none of 127.0.0.9:6443 answers", "proven before that, ", ": "+vip4+" answered by "+server4)
		last := n.status().Last
		if len(last.Before) != 2 || !last.Before[0].Time.Equal(proof) || !last.Before[0].OK || last.Proven() || !last.Time.After(proof) || proof.Before(begin.UTC().Truncate(time.Second)) {
			t.Errorf("proofs before: %+v, of this run: %+v at %s; want the one of %s", last.Before, last.Proofs, last.Time, proof)
		}
	}
	n.plainStatus()
	n.init()
	n.plainStatus()

	// What touches no traffic proves nothing, and makes no proof forgotten.
	n.run("install", "--service-ips", vips, "--endpoints", servers).exits(0)
	n.run("status").exits(0).says("serving; proven", vip4+" answered by "+server4, "after a reboot: will not survive a reboot")
	n.without(n.pins().Links() + "/sendmsg4")
	lab.Await(t, "the link to detach", func() bool { return len(n.attached()) == len(bpf.Hooks())-1 })
	n.run("status").exits(bootstrap.ExitProof).says("sendmsg4 is not attached")
}

func (n node) status() (st diagnose.Status) {
	n.Helper()
	n.run("status", "-o", "json").decode(&st)
	return st
}

// plainStatus wants nothing said of failures after an init that succeeds.
func (n node) plainStatus() {
	n.Helper()
	n.init()
	r := n.run("status").exits(0).says("serving; proven")
	if strings.Contains(r.stdout, "failed") || strings.Contains(r.stdout, "before") {
		n.Errorf("status:\n%s", r.stdout)
	}
	if r := n.run("status", "-o", "json").exits(0); strings.Contains(r.stdout, "proofs_before") {
		n.Errorf("status has proofs_before:\n%s", r.stdout)
	}
}

// TestInitWarnsOfAddressesThatCannotBeSaved: what was proven serves, whatever the next boot finds.
func TestInitWarnsOfAddressesThatCannotBeSaved(t *testing.T) {
	n := newNode(t)
	n.serving()
	for _, dir := range []string{"apiserver.json/x", "apiserver.json.damaged/x"} { // neither written over nor moved out of the way
		if err := os.MkdirAll(filepath.Join(n.StateDir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.run("init", "--service-ips", vips, "--endpoints", servers).exits(0).says("warning: the API server addresses are not saved")
	n.checkServes()
	n.run("status").exits(0).says("serving; proven")
	n.run("install", "--service-ips", vips, "--endpoints", servers).exits(bootstrap.ExitInternal).says("failed at persist", "are not saved")
}
