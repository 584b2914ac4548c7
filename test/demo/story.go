package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/firsthop/firsthop/test/lab"
)

// connections is how many the demo makes to each family at a time. With one of three servers dead, that none of these
// fails by chance happens once in 100,000,000 times.
const connections = 45

// teller prints numbered chapters, and commands with their output.
type teller struct {
	ctx     context.Context
	out     io.Writer
	machine *machine
	chapter int
	// What was there before init, to compare.
	before      *lab.Snapshot
	filesBefore []string
}

// tell is the story. Each chapter checks what it says.
func tell(ctx context.Context, out io.Writer, m *machine) error {
	t := &teller{ctx: ctx, out: out, machine: m}
	for _, chapter := range []func() error{
		t.theMachine,
		t.nothingServesTheServiceIP,
		t.initSeedsAndAttaches,
		t.connectionsReachEveryServer,
		t.aServerDies,
		t.initMovesTheDeadOneOut,
		t.statusAndTable,
		t.theWayBack,
	} {
		if err := chapter(); err != nil {
			return fmt.Errorf("step %d: %w", t.chapter, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (t *teller) theMachine() error {
	t.title("A machine of its own, with three API servers")
	l := t.machine.lab
	t.say("network namespace %s\ncgroup            %s\nbpffs             %s", l.Name, l.Cgroup, l.BPFFS)
	for _, s := range t.machine.servers {
		t.say("API server %s      %s and %s", s.Name, s.Addrs[0], s.Addrs[1])
	}
	t.say("")
	t.typed("export KUBERNETES_SERVICE_IPS_PORTS=" + serviceIPsPorts())
	t.typed("export KUBERNETES_APISERVER_ENDPOINTS=" + t.machine.endpoints())
	t.typed("HERE=" + strconv.Quote(strings.Join(l.Flags(), " ")) + " # instead of the machine's own")
	var err error
	if t.before, err = lab.Take(); err != nil {
		return err
	}
	t.filesBefore, err = t.machine.files()
	return err
}

func (t *teller) nothingServesTheServiceIP() error {
	t.title("Before: nothing serves the Service IP")
	for _, ip := range serviceIPs() {
		out, err := t.do(curl(ip))
		if err == nil {
			return fmt.Errorf("something answers already: %s", out)
		}
	}
	return nil
}

func (t *teller) initSeedsAndAttaches() error {
	t.title("firsthop init")
	_, err := t.do("firsthop init $HERE --persist off")
	return err
}

func (t *teller) connectionsReachEveryServer() error {
	t.title("Every program in the cgroup reaches an API server at the Service IP")
	for _, ip := range serviceIPs() {
		if out, err := t.do(curl(ip)); err != nil {
			return err
		} else if !strings.Contains(out, "gitVersion") {
			return fmt.Errorf("the answer is no version: %s", out)
		}
	}
	out, err := t.do(getMany())
	if err != nil {
		return err
	}
	if n := failures(out); n > 0 {
		return fmt.Errorf("%d of %d connections failed, want none", n, 2*connections)
	}
	t.say("No packet was rewritten: the address was, when the program called connect().")
	return nil
}

func (t *teller) aServerDies() error {
	t.title("API server b dies")
	t.machine.servers[1].Close()
	out, err := t.do(getMany())
	if err != nil {
		return err
	}
	n := failures(out)
	if n == 0 || n == 2*connections {
		return fmt.Errorf("%d of %d connections failed, want some", n, 2*connections)
	}
	t.say("%d of %d connections went to the dead one: the init stage looks once and ends.", n, 2*connections)
	return nil
}

func (t *teller) initMovesTheDeadOneOut() error {
	t.title("firsthop init again: the dead one loses its place")
	if _, err := t.do("firsthop init $HERE --persist off"); err != nil {
		return err
	}
	out, err := t.do(getMany())
	if err != nil {
		return err
	}
	if n := failures(out); n > 0 {
		return fmt.Errorf("%d of %d connections failed, want none", n, 2*connections)
	}
	return nil
}

func (t *teller) statusAndTable() error {
	t.title("What is there now")
	if _, err := t.do("firsthop status $HERE"); err != nil {
		return err
	}
	_, err := t.do("firsthop nat $HERE")
	return err
}

func (t *teller) theWayBack() error {
	t.title("The way back")
	announced, err := t.do("firsthop uninstall $HERE --dry-run")
	if err != nil {
		return err
	}
	// Nothing else would serve the Service IP here: --force says that we know. The output is the same again.
	if _, err := t.do("firsthop uninstall $HERE --force > removed.txt"); err != nil {
		return err
	}
	removed, err := os.ReadFile(filepath.Join(t.machine.dir, "removed.txt"))
	if err != nil {
		return err
	}
	if err := sameLines(strings.ReplaceAll(announced, "would remove", "removed"), string(removed)); err != nil {
		return fmt.Errorf("uninstall did not do what it announced: %w", err)
	}
	t.say("It removed just that, line by line.\n")
	if out, err := t.do(curl(serviceIP4)); err == nil {
		return fmt.Errorf("something still answers: %s", out)
	}
	return t.nothingIsLeft()
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
	t.say("Compared with before init: no BPF program, link or map more, no pin, no file.")
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

func (t *teller) title(title string) {
	t.chapter++
	fmt.Fprintf(t.out, "\n%d. %s\n\n", t.chapter, title)
}

func (t *teller) say(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		fmt.Fprintln(t.out, strings.TrimRight("   "+line, " "))
	}
}

func (t *teller) typed(line string) { t.say("$ %s", line) }

// do types a command, shows its output, and returns it.
func (t *teller) do(line string) (string, error) {
	t.typed(line)
	out, err := t.machine.shell(t.ctx, line)
	if out != "" {
		t.say("%s", out)
	}
	t.say("")
	if err != nil {
		err = fmt.Errorf("%s: %w", line, err)
	}
	return out, err
}
