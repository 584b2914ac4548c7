package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runLog is where `firsthop run` writes its log.
const runLog = "run.log"

// startRuntime starts firsthop run, and waits until it serves the Service shop by the given pods.
func (t *teller) startRuntime(pods ...int) error {
	const line = "firsthop run --kubeconfig kubeconfig --node-name " + nodeName + " --node-status=false"
	t.typed(line + " 2>" + runLog + " &")
	var err error
	if t.runtime, err = t.machine.background(t.ctx, "exec "+line, runLog); err != nil {
		return err
	}
	return t.untilShop(pods...)
}

// endRuntime sends a signal to firsthop run, and waits for its end. A process that a signal kills is no error.
func (t *teller) endRuntime(signal unix.Signal) error {
	if err := t.runtime.Process.Signal(signal); err != nil {
		return err
	}
	err := t.runtime.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == signal && signal == unix.SIGKILL {
			return nil
		}
	}
	return err
}

// entry is a Service of the table, as `firsthop nat -o json` has it.
type entry struct {
	Frontends, Backends []string
}

// backends returns the backends of the Service that has a frontend, from the table itself.
func (t *teller) backends(frontend string) ([]string, error) {
	out, err := t.machine.shell(t.ctx, "firsthop nat -o json")
	if err != nil {
		return nil, fmt.Errorf("firsthop nat: %w: %s", err, out)
	}
	var table []entry
	if err := json.Unmarshal([]byte(out), &table); err != nil {
		return nil, fmt.Errorf("firsthop nat: %w: %s", err, out)
	}
	for _, e := range table {
		if slices.Contains(e.Frontends, frontend) {
			slices.Sort(e.Backends)
			return e.Backends, nil
		}
	}
	return nil, nil
}

// untilBackends waits until the table has exactly these backends for a frontend.
func (t *teller) untilBackends(frontend string, want []string) error {
	slices.Sort(want)
	err := t.until("the table leads "+frontend+" to "+strings.Join(want, " "), func() (string, error) {
		got, err := t.backends(frontend)
		if err != nil || slices.Equal(got, want) {
			return "", err
		}
		return fmt.Sprintf("it has %q", got), nil
	})
	if err == nil || t.ctx.Err() != nil {
		return err
	}
	log, _ := os.ReadFile(filepath.Join(t.machine.dir, runLog)) // what there is
	return fmt.Errorf("%w\nfirsthop run says:\n%s", err, log)
}

// showNAT shows the part of the table that is about a name or an address.
func (t *teller) showNAT(what string) error {
	line := "firsthop nat " + what
	t.typed(line)
	out, err := t.machine.shell(t.ctx, line)
	t.showClipped(out)
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return nil
}

// untilShop waits until the table leads the Service shop to the pods with these numbers.
func (t *teller) untilShop(pods ...int) error {
	var want []string
	for _, n := range pods {
		want = append(want, podAddr(n))
	}
	return t.untilBackends("tcp/"+shopIP+":80", want)
}

// untilAnswers waits until the client has a number of answers more than now.
func (t *teller) untilAnswers(more int) error {
	had, err := t.machine.answers()
	if err != nil {
		return err
	}
	return t.until(fmt.Sprintf("the client gets %d more answers", more), func() (string, error) {
		now, err := t.machine.answers()
		if err != nil || len(now) >= len(had)+more {
			return "", err
		}
		return fmt.Sprintf("it has %d", len(now)-len(had)), nil
	})
}

// tally counts the client's answers by what they say, from one on, and fails where one isn't a pod's.
func (t *teller) tally(from int) (total int, counts map[string]int, err error) {
	answers, err := t.machine.answers()
	if err != nil {
		return 0, nil, err
	}
	counts = make(map[string]int)
	for _, a := range answers[from:] {
		if !strings.HasPrefix(a, "hello from pod ") {
			return 0, nil, fmt.Errorf("a connection of the client failed: %s", a)
		}
		counts[a]++
	}
	return len(answers) - from, counts, nil
}

// showTally shows what the client got from an answer on.
func (t *teller) showTally(from int) (total int, counts map[string]int, err error) {
	total, counts, err = t.tally(from)
	if err != nil {
		return 0, nil, err
	}
	var parts []string
	for what, n := range counts {
		parts = append(parts, fmt.Sprintf("%d %s", n, strings.TrimPrefix(what, "hello ")))
	}
	slices.SortFunc(parts, func(a, b string) int { return strings.Compare(a[strings.Index(a, " "):], b[strings.Index(b, " "):]) })
	t.say("Answers that the client got: %s; 0 failed.", strings.Join(parts, ", "))
	return total, counts, nil
}

func (t *teller) runServesEveryService() error {
	t.title("firsthop run: every Service")
	if err := t.machine.createCluster(); err != nil {
		return err
	}
	t.say("The cluster has the Service %s at %s:80, with the pods shop-1 and shop-2.\n ", shopName, shopIP)
	if out, err := t.do("curl -sS -m 10 http://" + shopIP + "/"); err == nil {
		return fmt.Errorf("something answers already: %s", out)
	}
	if err := t.startRuntime(1, 2); err != nil {
		return err
	}
	out, err := t.do("curl -sS -m 10 http://" + shopIP + "/")
	if err != nil {
		return err
	}
	if out != greeting(1) && out != greeting(2) {
		return fmt.Errorf("the answer is %q", out)
	}
	if err := t.showNAT(shopName); err != nil {
		return err
	}
	t.conclude("The runtime took over what init made, and now serves every Service of the cluster.")
	return nil
}

func (t *teller) aServiceChanges() error {
	t.title("A Service changes while a client keeps connecting")
	t.typed(client + " >" + clientLog + " 2>&1 &")
	var err error
	if t.client, err = t.machine.background(t.ctx, client, clientLog); err != nil {
		return err
	}
	if err := t.untilAnswers(20); err != nil {
		return err
	}
	if err := t.machine.startPod(3); err != nil {
		return err
	}
	t.say("In the cluster, pod shop-3 replaces pod shop-1.")
	t.machine.setShop(2, 3)
	if err := t.untilShop(2, 3); err != nil {
		return err
	}
	if err := t.untilAnswers(2); err != nil { // of the first of them the connection may be older
		return err
	}
	if err := t.machine.stopPod(t.ctx, 1); err != nil {
		return err
	}
	former, err := t.machine.answers()
	if err != nil {
		return err
	}
	if err := t.untilAnswers(40); err != nil {
		return err
	}
	if err := t.showNAT(shopName); err != nil {
		return err
	}
	_, counts, err := t.tally(len(former))
	if err != nil {
		return err
	}
	if counts[greeting(1)] > 0 || counts[greeting(2)] == 0 || counts[greeting(3)] == 0 {
		return fmt.Errorf("the client is answered by %v, want shop-2 and shop-3", counts)
	}
	total, _, err := t.showTally(0)
	if err != nil {
		return err
	}
	t.conclude("shop-3 replaced shop-1 while the client connected %d times, and no connection failed.", total)
	return nil
}

func (t *teller) theRuntimeIsKilled() error {
	t.title("kill -9 of the runtime")
	from, err := t.machine.answers()
	if err != nil {
		return err
	}
	t.typed("kill -9 " + fmt.Sprint(t.runtime.Process.Pid))
	if err := t.endRuntime(unix.SIGKILL); err != nil {
		return err
	}
	if _, err := t.do("firsthop status", "no runtime"); err != nil {
		return err
	}
	if err := t.untilAnswers(100); err != nil {
		return err
	}
	total, _, err := t.showTally(len(from))
	if err != nil {
		return err
	}
	t.conclude("Without the runtime, %d of %d connections were answered: the kernel has programs and table.", total, total)
	return nil
}

func (t *teller) theRuntimeCatchesUp() error {
	t.title("The runtime starts again and catches up")
	if err := t.machine.startPod(4); err != nil {
		return err
	}
	t.say("While no runtime runs, the Service gets a further pod, shop-4.")
	t.machine.setShop(2, 3, 4)
	from, err := t.machine.answers()
	if err != nil {
		return err
	}
	if err := t.startRuntime(2, 3, 4); err != nil {
		return err
	}
	if err := t.untilAnswers(60); err != nil {
		return err
	}
	_, counts, err := t.showTally(len(from))
	if err != nil {
		return err
	}
	if counts[greeting(4)] == 0 {
		return fmt.Errorf("the client is answered by %v, want shop-4 too", counts)
	}
	t.conclude("The new runtime continued where the old one was killed, added shop-4, and no connection failed.")
	return nil
}

func (t *teller) runMovesADeadServerOut() error {
	t.title("API server b comes back, and a dies")
	const frontend = "tcp/" + serviceIP4 + ":443"
	if err := t.machine.startServer(1); err != nil {
		return err
	}
	at := func(i int) string { return serverAddrs(i)[0].String() }
	if err := t.untilBackends(frontend, []string{at(0), at(1), at(2)}); err != nil {
		return err
	}
	t.machine.servers[0].Close()
	died := time.Now()
	for family, f := range []string{frontend, "tcp/[" + serviceIP6 + "]:443"} {
		if err := t.untilBackends(f, []string{serverAddrs(1)[family].String(), serverAddrs(2)[family].String()}); err != nil {
			return err
		}
	}
	took := time.Since(died)
	if err := t.showNAT(serviceIP4); err != nil {
		return err
	}
	if err := t.allAnswered(); err != nil {
		return err
	}
	t.conclude("The runtime put b back, and removed a from the table %.1f seconds after it died.", took.Seconds())
	return nil
}

// stopClient ends the client. It fails if a connection of the client's has failed in all this time.
func (t *teller) stopClient() error {
	if err := t.untilAnswers(1); err != nil {
		return err
	}
	if err := t.client.Process.Kill(); err != nil {
		return err
	}
	_ = t.client.Wait() // it was killed
	total, _, err := t.tally(0)
	if err != nil {
		return err
	}
	t.say("The client stops: it connected %d times in all, and no connection failed.\n ", total)
	return nil
}
