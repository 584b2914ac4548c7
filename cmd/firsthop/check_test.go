package main

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/units"
)

// TestCheckSaysWhatInitWouldDo: the same settings, the same changes, the same exit code.
func TestCheckSaysWhatInitWouldDo(t *testing.T) {
	n := newNode(t)
	n.serving()
	given := []string{"--service-ips", vips, "--endpoints", servers}
	check := func(more ...string) (r diagnose.CheckReport) {
		t.Helper()
		n.run(slices.Concat([]string{"check", "-o", "json"}, given, more)...).exits(0).decode(&r)
		return r
	}
	before := n.snapshot()
	r := check()
	for _, st := range n.run(slices.Concat([]string{"init", "--dry-run", "-o", "json"}, given)...).exits(0).report().Steps {
		for _, change := range st.Changes {
			if !slices.Contains(r.Would, change) {
				t.Errorf("check does not say that init would: %s", change)
			}
		}
	}
	n.unchanged(before)
	n.run(append([]string{"check"}, given...)...).exits(0).says("this node is ready", vip4, server4, "init would", "attach connect4")
	if r := check("--udp=false"); slices.Contains(r.Would, "attach sendmsg4") {
		t.Errorf("without UDP, init would: %q", r.Would)
	}
	n.run(slices.Concat([]string{"check"}, given, []string{"--scope", "off"})...).exits(bootstrap.ExitAttach).says("fail  attach", "nothing else on this node serves")
	n.run("check", "--root", t.TempDir()).exits(bootstrap.ExitNotFound).says("fail: this node is not ready", "exit code 7", "no API server address found", "firsthop discover")
	n.run("check", "--service-ips", vip4, "--endpoints", "127.0.0.1:9").exits(bootstrap.ExitProof).says("no API server answers", "127.0.0.1:9 is dead")
	n.run("check", "--service-ips", "10.96.0.1").exits(bootstrap.ExitUsage).says("write 10.96.0.1:443")
}

// TestCheckPrintsWhatMatters: what results were made from is for --verbose.
func TestCheckPrintsWhatMatters(t *testing.T) {
	n := newNode(t)
	n.serving()
	line := []string{"check", "--service-ips", vips, "--endpoints", servers}
	short, long := n.run(line...).exits(0), n.run(append(line, "--verbose")...).exits(0)
	for _, detail := range []string{"type bpf", "required", "helper-map"} {
		if strings.Contains(short.stdout, detail) {
			t.Errorf("without --verbose it says %q:\n%s", detail, short.stdout)
		}
	}
	long.says("helper-map")
	if got := strings.Count(short.stdout, "\n"); got > 45 {
		t.Errorf("%d lines:\n%s", got, short.stdout)
	}
}

// TestUnitsSaysWhatInstallWouldDo with the same settings, and whatever starts services there.
func TestUnitsSaysWhatInstallWouldDo(t *testing.T) {
	for _, more := range [][]string{nil, {"--scope", "host", "--udp=false"}, {"--cgroup", "/sys/fs/cgroup"}} {
		for name, root := range map[string]string{"a host with systemd": hostWithSystemd(t), "a host without": t.TempDir()} {
			flags := slices.Concat([]string{"--root", root, "--service-ips", vip4, "--endpoints", server4}, more)
			var u units.Report
			plain(t, slices.Concat([]string{"units", "-o", "json"}, flags)...).exits(0).decode(&u)
			var planned, listed []string
			var r bootstrap.Report
			plain(t, slices.Concat([]string{"install", "--dry-run", "-o", "json"}, flags)...).decode(&r)
			for _, st := range r.Steps {
				for _, c := range st.Changes {
					if !strings.HasSuffix(c, "apiserver.json") { // addresses are no units
						planned = append(planned, c)
					}
				}
			}
			for _, a := range u.Actions {
				listed = append(listed, string(a.Kind)+" "+a.Path)
			}
			if !slices.Equal(planned, listed) {
				t.Errorf("%s, %q: units lists %q, install would do %q", name, more, listed, planned)
			}
			if u.Statement != r.AfterReboot {
				t.Errorf("%s, %q: units says\n%s\ninstall says\n%s", name, more, u.Statement, r.AfterReboot)
			}
		}
	}
}

// TestTextFitsIntoItsColumns for all that people read. A word that is longer stays whole.
func TestTextFitsIntoItsColumns(t *testing.T) {
	n := newNode(t)
	n.serving()
	given := []string{"--service-ips", vips, "--endpoints", servers}
	for _, line := range [][]string{
		append([]string{"check", "--verbose"}, given...), append([]string{"init", "--persist", "off"}, given...), append([]string{"init", "--dry-run"}, given...),
		{"status"}, {"doctor"}, {"nat"}, {"nat", "lookup", vip4}, append([]string{"discover"}, given...), {"discover"}, {"units"}, {"uninstall", "--dry-run", "--force"},
	} {
		r := n.run(line...)
		if r.stdout == "" {
			t.Errorf("%q prints nothing", line)
		}
		for text := range strings.Lines(r.stdout) {
			text = strings.TrimRight(text, "\n")
			if utf8.RuneCountInString(text) > lineWidth && strings.Contains(strings.TrimSpace(text), " ") && !longWord(text) {
				t.Errorf("%q: more than %d columns: %s", line, lineWidth, text)
			}
			if text != strings.TrimRight(text, " ") {
				t.Errorf("%q: blanks at the end of %q", line, text)
			}
		}
		first, _, _ := strings.Cut(r.stdout, "\n")
		if line[0] != "nat" && line[0] != "uninstall" && !slices.ContainsFunc([]string{"ok: ", "warn: ", "fail: ", "skip: ", "done in ", "dry run: "}, func(v string) bool { return strings.HasPrefix(first, v) }) {
			t.Errorf("%q does not begin with a verdict: %s", line, first)
		}
	}
}

// longWord reports whether a line has a word that leaves no room: a path of a test's directory.
func longWord(line string) bool {
	return slices.ContainsFunc(strings.Fields(line), func(w string) bool { return utf8.RuneCountInString(w) > 30 })
}

func TestColumnWidths(t *testing.T) {
	long := strings.Repeat("word ", 30)
	for _, tc := range []struct {
		row  []string
		want []int
	}{
		{[]string{"a", "bb"}, []int{1, 2}},
		{[]string{"aaaa", long}, []int{4, lineWidth - 6}},
		{[]string{long, long}, []int{49, 49}},
		{[]string{strings.Repeat("a", 120), "b b"}, []int{120, 1}},
		{[]string{"aaaa", long + strings.Repeat("a", 120)}, []int{4, lineWidth - 6}}, // the word runs over, and alone
	} {
		if got := columnWidths([][]string{tc.row}); !slices.Equal(got, tc.want) {
			t.Errorf("%q: %v, want %v", tc.row, got, tc.want)
		}
	}
}

// TestDoctorAcceptsTheSettingsOfTheBootUnit: a node that was installed with other settings than the default is healthy.
func TestDoctorAcceptsTheSettingsOfTheBootUnit(t *testing.T) {
	for _, settings := range [][]string{nil, {"--scope", "host", "--udp=false", "--extra-service", extra4}} {
		root := hostWithSystemd(t)
		plain(t, slices.Concat([]string{"install", "--root", root, "--service-ips", vip4, "--endpoints", server4}, settings)...).exits(0)
		var r diagnose.DoctorReport
		plain(t, "doctor", "--root", root, "-o", "json").decode(&r)
		for _, d := range r.Findings {
			if d.Check == "boot" && strings.Contains(d.Sentence, "is not what this firsthop would install") {
				t.Errorf("%q: %+v", settings, d)
			}
		}
		plain(t, "uninstall", "--root", root).exits(0)
	}
}
