package units

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/units/unitfile"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./units -update writes it)", err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func mustService(t *testing.T, c Config, version int) []*unit.UnitOption {
	t.Helper()
	opts, err := ServiceUnit(c, version)
	if err != nil {
		t.Fatal(err)
	}
	return opts
}

func TestUnitsAreGolden(t *testing.T) {
	golden(t, "firsthop-init.service", render(mustService(t, Config{}, 252)))
	golden(t, "firsthop-init-237.service", render(mustService(t, Config{}, 237)))
	golden(t, "firsthop-init-instance.service", render(mustService(t, Config{
		BPFFS: "/run/test one/bpf", StateDir: "/srv/100%/state",
		Args: []string{"init", "--boot", "--bpffs", "/run/test one/bpf", "--note=$HOME %h \"q\" \\ ;", ";", ""},
	}, 252)))
	golden(t, "sys-fs-bpf.mount", render(MountUnit(DefaultBPFFS)))
	golden(t, "firsthop-init-package.service", []byte(pkgUnit))
	script, err := OpenRCScript(Config{Args: []string{"init", "--boot", "--note", "it's $HOME"}})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "firsthop-init.openrc", script)
}

func TestMountUnitNameIsTheEscapedPath(t *testing.T) {
	for path, want := range map[string]string{
		"/sys/fs/bpf":      "sys-fs-bpf.mount",
		"/run/fh-1/b pf/x": `run-fh\x2d1-b\x20pf-x.mount`,
	} {
		if got := MountUnitName(path); got != want {
			t.Errorf("MountUnitName(%q) = %q, want %q", path, got, want)
		}
	}
}

// The mounts that the service makes must be the host's.
func TestServiceHasNoMountNamespace(t *testing.T) {
	for _, version := range []int{0, 237, 239, 252, 257} {
		for _, o := range mustService(t, Config{}, version) {
			if impliesMountNamespace(o.Name) {
				t.Errorf("systemd %d: %s=%s gives the service a mount namespace", version, o.Name, o.Value)
			}
		}
	}
}

// The list is compared with the manual of the systemd that is installed here:
// every directive that is said to need a mount namespace must be on it.
func TestNamespacingListCoversTheManual(t *testing.T) {
	out, err := exec.Command("sh", "-c", "zcat -f /usr/share/man/man5/systemd.exec.5.gz").Output()
	if err != nil || len(out) == 0 {
		t.Skip("systemd.exec(5) is not installed")
	}
	// Troff: the names stand in a line of their own between .PP and .RS, and
	// what is said of them up to the matching .RE.
	namespace := regexp.MustCompile(`(?i)(mount|file system) namespac`)
	onlyMention := []string{"NoNewPrivileges", "SystemCallFilter"}
	var current []string
	depth, found, previous := 0, 0, ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, ".RS"):
			if depth == 0 {
				current = regexp.MustCompile(`[A-Z][A-Za-z]+`).FindAllString(strings.NewReplacer(`\fI`, "", `\fR`, "").Replace(previous), -1)
			}
			depth++
		case strings.HasPrefix(line, ".RE"):
			depth--
		case depth > 0 && namespace.MatchString(line):
			for _, name := range current {
				found++
				if !impliesMountNamespace(name) && !slices.Contains(onlyMention, name) {
					t.Errorf("systemd.exec(5) on %s= speaks of mount namespaces (%q), and it is not on the list", name, line)
				}
			}
		}
		previous = line
	}
	if found < 15 {
		t.Errorf("found %d directives in the manual: it is not read as it is written", found)
	}
}

func TestServiceDirectives(t *testing.T) {
	value := func(version int, name string) string {
		var v []string
		for _, o := range mustService(t, Config{}, version) {
			if o.Name == name {
				v = append(v, o.Value)
			}
		}
		return strings.Join(v, " | ")
	}
	for _, tt := range []struct {
		row     string
		version int
		name    string
		want    string
	}{
		{"a oneshot has no start timeout of its own", 252, "TimeoutStartSec", "30s"},
		{"nothing requires the network", 252, "After", ""},
		{"newer systemd has no unit for the bpffs to wait for", 252, "Wants", ""},
		{"older systemd mounts the bpffs by our unit first", 237, "After", "sys-fs-bpf.mount"},
		{"nothing requires the service, the boot goes on without it", 252, "RequiredBy", ""},
		{"multi-user.target only wants it", 252, "WantedBy", "multi-user.target"},
		{"before 239 the filter group is unknown and would leave bpf alone allowed", 238, "SystemCallFilter", ""},
		{"default directories are not spelled out", 252, "ExecStart", "/opt/firsthop/bin/firsthop init --boot"},
		{"an unknown version is treated as old", 0, "SystemCallFilter", ""},
		{"from 239 on the calls are filtered", 239, "SystemCallFilter", "@system-service @mount bpf | ~chroot pivot_root"},
	} {
		if got := value(tt.version, tt.name); got != tt.want {
			t.Errorf("%s: systemd %d: %s=%q, want %q", tt.row, tt.version, tt.name, got, tt.want)
		}
	}
}

func TestServiceSpellsOutOtherDirectories(t *testing.T) {
	for _, o := range mustService(t, Config{StateDir: "/srv/state", BPFFS: "/srv/bpf"}, 252) {
		if want := BinaryPath + " init --boot --state-dir /srv/state --bpffs /srv/bpf"; o.Name == "ExecStart" && o.Value != want {
			t.Errorf("ExecStart=%s, want %s", o.Value, want)
		}
	}
}

func TestConfigRefusesWhatAUnitCanNotHold(t *testing.T) {
	for row, c := range map[string]Config{
		"a relative path":            {StateDir: "var/lib"},
		"a path with ..":             {StateDir: "/opt/../x"},
		"a newline in a path":        {StateDir: "/a\nExecStart=/bin/sh"},
		"a backslash in a path":      {BPFFS: `/a\`},
		"an argument that is binary": {Args: []string{"\xff"}},
		"an argument with NUL":       {Args: []string{"a\x00b"}},
	} {
		if _, err := ServiceUnit(c, 252); err == nil {
			t.Errorf("%s is accepted", row)
		}
	}
}

// unitRoot is a root with what systemd-analyze needs to load our units.
func unitRoot(t *testing.T) host {
	h := newHost(t, map[string]string{"/opt/firsthop/bin/firsthop": "#!/bin/sh\n", "/etc/os-release": "ID=test\n"})
	if err := os.Chmod(h.path("/opt/firsthop/bin/firsthop"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.path("/usr/lib/systemd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-r", "/lib/systemd/system", h.path("/usr/lib/systemd/system")).CombinedOutput(); err != nil {
		t.Fatalf("copy the distribution's units: %v: %s", err, out)
	}
	return h
}

func needsSystemdAnalyze(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed (Debian package systemd)")
	}
}

// What is installed passes systemd's own check without a word.
func TestSystemdAnalyzeVerify(t *testing.T) {
	needsSystemdAnalyze(t)
	h := unitRoot(t)
	c := h.config()
	c.initSystem = &Init{Kind: Systemd, Version: 252}
	c.BinarySource = "" // the stub
	mustInstall(t, c)
	verify := func() string {
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--root="+h.root, ServiceName).CombinedOutput()
		if err != nil {
			return string(out) + err.Error()
		}
		return string(out)
	}
	if out := verify(); out != "" {
		t.Errorf("systemd-analyze verify says:\n%s", out)
	}
	// Seen to fail: the check that is relied on does look.
	h.write(systemDir+"/"+ServiceName, h.read(systemDir+"/"+ServiceName)+"\n[Service]\nNoSuchDirective=yes\n")
	if out := verify(); !strings.Contains(out, "NoSuchDirective") {
		t.Errorf("systemd-analyze verify does not see a bad directive: %q", out)
	}
}

// The exposure of the service, as systemd judges it, does not grow unseen. The
// points that are left are those of mount namespaces and of what the work needs.
func TestSystemdAnalyzeSecurity(t *testing.T) {
	needsSystemdAnalyze(t)
	const ceiling = 5.6
	h := unitRoot(t)
	h.write(systemDir+"/"+ServiceName, string(render(mustService(t, Config{}, 252))))
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--root="+h.root, "--no-pager", ServiceName).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no exposure level in:\n%s", out)
	}
	level, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || level > ceiling {
		t.Errorf("exposure level %s, want at most %v (%v)\n%s", m[1], ceiling, err, out)
	}
}

// The groups that the filter names exist in the systemd that is here and hold
// the calls that the work needs; the rest of 239..257 is from its sources.
func TestSystemCallFilterHoldsWhatWeCall(t *testing.T) {
	needsSystemdAnalyze(t)
	allowed := map[string]bool{"bpf": true}
	var expand func(group string)
	expand = func(group string) {
		out, err := exec.Command("systemd-analyze", "syscall-filter", group).Output()
		if err != nil {
			t.Fatalf("%s: %v", group, err)
		}
		for line := range strings.Lines(string(out)) {
			name := strings.TrimSpace(line)
			switch {
			case name == group || name == "" || strings.HasPrefix(name, "#"):
			case strings.HasPrefix(name, "@"):
				expand(name)
			default:
				allowed[name] = true
			}
		}
	}
	for _, group := range []string{"@default", "@system-service", "@mount"} {
		expand(group)
	}
	for _, name := range []string{
		"mount", "umount2", "fsopen", "fsconfig", "fsmount", "move_mount", "open_tree",
		"setns", "unshare", "clone", "clone3", "pidfd_open", "pidfd_send_signal", "waitid", "execve",
		"flock", "renameat2", "fsync", "openat2", "statfs", "name_to_handle_at", "lgetxattr", "fsetxattr",
		"socket", "connect", "getpeername", "getsockopt", "epoll_pwait2", "eventfd2", "futex", "prlimit64", "mmap", "mlock",
	} {
		if !allowed[name] {
			t.Errorf("the filter forbids %s", name)
		}
	}
}

func TestIsOursWantsALineOfItsOwn(t *testing.T) {
	for data, want := range map[string]bool{
		Marker: true, Marker + "\r\n[Unit]": true, "#!/sbin/openrc-run\n" + Marker + "\n": true,
		"": false, "## " + Marker: false, Marker + " and others\n": false, "Description=" + Marker: false,
	} {
		if got := isOurs([]byte(data)); got != want {
			t.Errorf("isOurs(%q) = %v", data, got)
		}
	}
}

func TestInstallSection(t *testing.T) {
	for data, want := range map[string]string{
		"[Install]\nWantedBy=a.target b.target\nRequiredBy=c.target":                               "a.target.wants b.target.wants c.target.requires",
		"[Install]\nWantedBy = a.target \\\n# a comment\n  b.target":                               "a.target.wants b.target.wants",
		"[Install]\nWantedBy=a.target\nWantedBy=\nWantedBy=b.target":                               "b.target.wants",
		"[Unit]\nWantedBy=a.target\n; [Install]\nWantedBy=b.target":                                "",
		"[Install]\nWantedBy=../../x ok.target":                                                    "ok.target.wants",
		"[Service]\nExecStart=/x " + strings.Repeat("y", 1<<20) + "\n[Install]\nWantedBy=a.target": "a.target.wants",
	} {
		if got := strings.Join(installSection([]byte(data)), " "); got != want {
			t.Errorf("%.80q: %q, want %q", data, got, want)
		}
	}
}

// Whatever the arguments, the unit stays the unit: no line or section more.
func FuzzArgumentsStayInTheirLine(f *testing.F) {
	f.Add("a b", "%n $X")
	f.Add("x\n[Install]\nAlias=kubelet.service", `\`)
	f.Add(`"`, "'; rm")
	f.Fuzz(func(t *testing.T, a, b string) {
		opts, err := ServiceUnit(Config{Args: []string{a, b}}, 252)
		if err != nil {
			return
		}
		back, err := unit.DeserializeOptions(bytes.NewReader(render(opts)))
		if err != nil {
			t.Fatalf("%q %q: %v", a, b, err)
		}
		if d := cmp.Diff(opts, back); d != "" {
			t.Fatalf("%q %q (-written +read):\n%s", a, b, d)
		}
		var ours []*unit.UnitOption
		for _, o := range unitfile.Parse(string(render(opts))) {
			ours = append(ours, unit.NewUnitOption(o.Section, o.Key, o.Value))
		}
		if d := cmp.Diff(back, ours); d != "" {
			t.Fatalf("%q %q (-go-systemd +ours):\n%s", a, b, d)
		}
	})
}
