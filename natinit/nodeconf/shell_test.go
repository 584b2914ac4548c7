package nodeconf

import (
	"slices"
	"strings"
	"testing"
)

func TestShellBoundsVariables(t *testing.T) {
	host := files{"/etc/init.d/k3s": "command=/k3s\ncommand_args=xxxxxxxx\n" + strings.Repeat("command_args=$command_args$command_args\n", 60)}
	if got := Commands(host); len(got) != 1 || len(got[0].Argv) != 1 {
		t.Errorf("a value that doubles sixty times: %d words", len(got[0].Argv))
	}
}

func TestShellLeavesBraces(t *testing.T) {
	sh := newShell(files{}, map[string]string{"a": "x y"})
	sh.run("/k3s --node-ip={1..999999999} {a,b}{a,b} $a\n")
	if want := []string{"/k3s", "--node-ip={1..999999999}", "{a,b}{a,b}", "x", "y"}; len(sh.commands) != 1 || !slices.Equal(sh.commands[0], want) {
		t.Errorf("got %q, want %q", sh.commands, want)
	}
}

func FuzzShell(f *testing.F) {
	for _, s := range []string{"a() { b; }\nc=\"d ${e:-f $(g)}\" h='i' \\\n j >>k 2>&1 # l\n", "command_args=\"server \\\n\t'--x' $y\"\n", "${a:=${b}}", "$(", "`", "\"$", "a=b c=d e", "${", "${a:-${a:-${a:-${a:-${a:-b}}}}}"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, in string) {
		host := files{"/etc/init.d/k3s": in, "/etc/conf.d/k3s": in}
		Commands(host)
		SplitArgs(host, in, map[string]string{"A": in})
	})
}
