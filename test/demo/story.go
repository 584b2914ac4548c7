package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

// connections is how many the demo makes to each family at a time. With one of three servers dead, that none of these
// fails by chance happens once in 100,000,000 times.
const connections = 45

// teller shows the steps, and commands with their output.
type teller struct {
	ctx         context.Context
	out         io.Writer
	machine     *machine
	verbose     bool
	step, steps int
	// What was there before init, to compare.
	before      *lab.Snapshot
	filesBefore []string

	runtime *lab.Cmd // firsthop run
	client  *lab.Cmd // connects to the Service shop in a loop
}

// tell shows all of it. Each step checks what it says.
func (t *teller) tell() error {
	steps := []func() error{
		t.nothingServesTheServiceIP,
		t.initSeedsAndAttaches,
		t.connectionsReachEveryServer,
		t.initMovesADeadServerOut,
		t.runServesEveryService,
		t.aServiceChanges,
		t.theRuntimeIsKilled,
		t.theRuntimeCatchesUp,
		t.runMovesADeadServerOut,
		t.uninstallRemovesAll,
	}
	t.steps = len(steps)
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", t.step, err)
		}
		if err := t.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (t *teller) nothingServesTheServiceIP() error {
	t.title("A node with three API servers and no kube-proxy")
	l := t.machine.lab
	if t.verbose {
		t.say("network namespace %s\ncgroup            %s\nbpffs             %s", l.Name, l.Cgroup, l.BPFFS)
	}
	var addrs []string
	for i, s := range t.machine.servers {
		t.say("API server %s      %s and %s", s.Name, s.Addrs[0], s.Addrs[1])
		addrs = append(addrs, fmt.Sprintf("%s,%s", serverAddrs(i)[0], serverAddrs(i)[1]))
	}
	t.say("")
	t.typed("export KUBERNETES_SERVICE_IPS_PORTS=" + serviceIPsPorts())
	t.typed("export KUBERNETES_APISERVER_ENDPOINTS=" + strings.Join(addrs, ",\\\n"))
	var err error
	if t.before, err = lab.Take(); err != nil {
		return err
	}
	if t.filesBefore, err = t.machine.files(); err != nil {
		return err
	}
	for _, ip := range serviceIPs() {
		out, err := t.do(curl(ip))
		if err == nil {
			return fmt.Errorf("something answers already: %s", out)
		}
	}
	t.conclude("Nothing serves the Service IP: programs cannot reach an API server through it.")
	return nil
}

func (t *teller) initSeedsAndAttaches() error {
	t.title("firsthop init")
	if _, err := t.do("firsthop init --persist off", "discover ", "attach ", "prove ", "done in"); err != nil {
		return err
	}
	t.say("It warns because the demo has a cgroup of its own and no cluster CA. make demo DEMO=-v shows all.")
	t.conclude("The Service IP now leads to the API servers, and init proved it with a real connection.")
	return nil
}

func (t *teller) connectionsReachEveryServer() error {
	t.title("Any program reaches an API server at the Service IP")
	for _, ip := range serviceIPs() {
		if out, err := t.do(curl(ip)); err != nil {
			return err
		} else if !strings.Contains(out, "gitVersion") {
			return fmt.Errorf("the answer is no version: %s", out)
		}
	}
	t.say("\n`demo get` makes %d connections to each URL and counts who answers:", connections)
	if err := t.allAnswered(); err != nil {
		return err
	}
	t.conclude("Every connection is answered. No packet is rewritten: connect() itself gets the address of a live server.")
	return nil
}

func (t *teller) initMovesADeadServerOut() error {
	t.title("API server b dies, and firsthop init runs again")
	t.machine.servers[1].Close()
	out, err := t.do(getMany())
	if err != nil {
		return err
	}
	n := failures(out)
	if n == 0 || n == 2*connections {
		return fmt.Errorf("%d of %d connections failed, want some", n, 2*connections)
	}
	if _, err := t.do("firsthop init --persist off", "is dead", "done in"); err != nil {
		return err
	}
	if err := t.allAnswered(); err != nil {
		return err
	}
	t.conclude("%d of %d connections went to the dead server; now none does. init checks the servers once; "+
		"`firsthop run`, below, checks them all the time.", n, 2*connections)
	return nil
}

// allAnswered makes many connections, and wants all of them answered.
func (t *teller) allAnswered() error {
	out, err := t.do(getMany())
	if err != nil {
		return err
	}
	if n := failures(out); n > 0 {
		return fmt.Errorf("%d of %d connections failed, want none", n, 2*connections)
	}
	return nil
}

func serviceIPs() []string { return []string{serviceIP4, "[" + serviceIP6 + "]"} }

// url is quoted where some shells would take the brackets for a pattern.
func url(ip string) string {
	u := "https://" + ip + ":443/version"
	if strings.Contains(ip, "[") {
		return "'" + u + "'"
	}
	return u
}

func curl(ip string) string {
	return "curl -sS --cacert ca.crt " + url(ip) + " | grep gitVersion"
}

func getMany() string {
	line := fmt.Sprintf("demo get -n %d", connections)
	for _, ip := range serviceIPs() {
		line += " " + url(ip)
	}
	return line
}

// outcomes finds the counts in what demo get prints.
var outcomes = regexp.MustCompile(`[:,] (\d+) ([^,\n]*)`)

// failures counts the connections that no server answered.
func failures(out string) int {
	sum := 0
	for _, m := range outcomes.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		if err == nil && !strings.HasPrefix(m[2], "answered by ") {
			sum += n
		}
	}
	return sum
}

// do types a command and shows its output: those lines that have one of some words in them, or all if none has. It
// returns all of it.
func (t *teller) do(line string, words ...string) (string, error) {
	if t.ctx.Err() != nil {
		return "", t.ctx.Err()
	}
	t.typed(line)
	out, err := t.machine.shell(t.ctx, line)
	if short := linesWith(out, words...); err == nil && !t.verbose && short != "" {
		t.showClipped(short)
	} else {
		t.show(out)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", line, err)
	}
	return out, err
}

// patience is how long the demo waits for what should take milliseconds, or two seconds at most: the machine may be busy.
const patience = time.Minute

// until waits until something holds, which says in words what is missing.
func (t *teller) until(what string, missing func() (string, error)) error {
	for end := time.Now().Add(patience); ; {
		lacks, err := missing()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", what, err)
		case lacks == "":
			return nil
		case time.Now().After(end):
			return errors.New(what + ": waited a minute in vain: " + lacks)
		}
		select {
		case <-t.ctx.Done():
			return t.ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
