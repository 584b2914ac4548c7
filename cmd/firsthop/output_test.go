package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
)

// TestScript runs the scripts of testdata/script: what the program says of itself, which is an interface. After a change
// that is meant, see the flag -update.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		UpdateScripts:      *update,
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(firsthop)+":"+os.Getenv("PATH"))
			e.Setenv("INSTANCE", fmt.Sprintf("--bpffs %[1]s/bpffs --cgroup %[1]s/cgroup --state-dir %[1]s/state --run-dir %[1]s/run", e.WorkDir))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": func(ts *testscript.TestScript, _ bool, args []string) { exits(ts, args) },
		},
	})
}

// exits CODE COMMAND... wants an exit code.
func exits(ts *testscript.TestScript, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	code := 0
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// TestHelpOfEveryCommandIsPinned: a new command gets its place in the script.
func TestHelpOfEveryCommandIsPinned(t *testing.T) {
	script, err := os.ReadFile("testdata/script/help.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range newApp(osEnv()).Commands {
		if want := "cmp stdout " + c.Name + ".txt\n"; !strings.Contains(string(script), want) {
			t.Errorf("testdata/script/help.txtar has no %q", want)
		}
	}
}

// terminal runs firsthop with its output on a terminal, and returns what it prints there.
func terminal(t *testing.T, n node, env []string, args ...string) string {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	pts, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.command(t.Context(), env, args...)
	cmd.Stdout = pts
	err = n.start(cmd)
	pts.Close()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		size, err := ptmx.Read(buf)
		out.Write(buf[:size])
		if err != nil { // EIO: nobody has the other side open any more
			break
		}
	}
	_ = cmd.Wait()
	return out.String()
}

func TestColoursAreForTerminals(t *testing.T) {
	n := newNode(t)
	n.serving()
	for _, tc := range []struct {
		name string
		env  []string
		args []string
		want bool
	}{
		{"a terminal", []string{"TERM=xterm"}, initArgs(), true},
		{"a terminal of no known kind", nil, initArgs(), true},
		{"NO_COLOR", []string{"TERM=xterm", "NO_COLOR=1"}, initArgs(), false},
		{"an empty NO_COLOR is none", []string{"TERM=xterm", "NO_COLOR="}, initArgs(), true},
		{"a dumb terminal", []string{"TERM=dumb"}, initArgs(), false},
		{"JSON", []string{"TERM=xterm"}, initArgs("-o", "json"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if out := terminal(t, n, tc.env, tc.args...); strings.Contains(out, "\x1b[32mok") != tc.want || !strings.Contains(out, "answered") {
				t.Errorf("coloured is not %t:\n%q", tc.want, out)
			}
		})
	}
	if out := n.run("init", "--service-ips", vips, "--endpoints", servers, "--persist", "off").exits(0).stdout; strings.Contains(out, "\x1b") {
		t.Errorf("coloured in a pipe:\n%q", out)
	}
}

// TestNotEveryDeviceIsATerminal: /dev/kmsg, to which a boot may log, and /dev/null are devices too.
func TestNotEveryDeviceIsATerminal(t *testing.T) {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if isTerminal(f) {
		t.Error("/dev/null is taken for a terminal")
	}
}

func TestLogGoesToStderr(t *testing.T) {
	n := newNode(t)
	n.serving()
	r := n.run(initArgs("--log-level", "debug", "--log-format", "json", "-o", "json")...).exits(0)
	r.report()
	for line := range strings.Lines(r.stderr) {
		l := result{T: t, stdout: line}
		var entry struct {
			Time  time.Time
			Level string
			Msg   string
		}
		l.decode(&entry)
		if entry.Msg == "" || entry.Level == "" || entry.Time.IsZero() {
			t.Errorf("log line %q", line)
		}
	}
	if !strings.Contains(r.stderr, `"step":"prove"`) {
		t.Errorf("the steps aren't logged:\n%s", r.stderr)
	}
	if r := n.run(initArgs()...).exits(bootstrap.ExitOK); r.stderr != "" {
		t.Errorf("an init without a problem logs %q", r.stderr)
	}
}
