package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/units"
)

const repository = "../../.."

var built = time.Unix(1790000000, 0).UTC()

// script runs firsthop: what goes into the packages is small then.
var script string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// runTests builds the program, once, as make does.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fh-packages-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	script = filepath.Join(dir, "script")
	err = os.WriteFile(script, []byte("#!/bin/sh\nexec \"$(dirname \"$0\")/firsthop\" \"$@\"\n"), 0o700)
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags=urfave_cli_no_docs", "-o", filepath.Join(dir, "firsthop"), "./cmd/firsthop")
	cmd.Dir, cmd.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
	if out, buildErr := cmd.CombinedOutput(); err != nil || buildErr != nil {
		fmt.Fprintln(os.Stderr, err, buildErr, string(out))
		return 1
	}
	return m.Run()
}

func newBuild(t *testing.T) Build {
	t.Helper()
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	return Build{Repository: repository, Version: "v1.2.3-rc.1-5-gabc1234", Time: built, Programs: []Program{{runtime.GOARCH, script}, {other, script}}}
}

func write(t *testing.T, b Build) []string {
	t.Helper()
	paths, err := b.WriteTo(t.Context(), filepath.Join(t.TempDir(), "new"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestTwoBuildsGiveTheSameBytes(t *testing.T) {
	b := newBuild(t)
	first := write(t, b)
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // whatever had the time in it differs now
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TZ", "Asia/Tokyo")
	second := write(t, b)
	if len(first) != 4 || len(second) != 4 {
		t.Fatalf("built %q and %q", first, second)
	}
	for i := range first {
		one, err := os.ReadFile(first[i])
		if err != nil {
			t.Fatal(err)
		}
		two, err := os.ReadFile(second[i])
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(first[i]) != filepath.Base(second[i]) || !bytes.Equal(one, two) {
			t.Errorf("%s and %s differ", first[i], second[i])
		}
	}
}

// wantFiles are all files of the packages, with their modes: %s is what is different between .deb and .rpm.
var wantFiles = map[string]int64{
	"/etc/default/firsthop":                              0o644,
	"/usr/bin/firsthop":                                  0o755,
	"/usr/lib/systemd/system/firsthop-init.service":      0o644,
	"/usr/lib/systemd/system/firsthop.service":           0o644,
	"/usr/share/bash-completion/completions/firsthop":    0o644,
	"/usr/share/doc/firsthop/NEWS.gz":                    0o644,
	"/usr/share/doc/firsthop/THIRD-PARTY-LICENSES.gz":    0o644,
	"/usr/share/doc/firsthop/copyright":                  0o644,
	"/usr/share/doc/firsthop/LICENSE (rpm)":              0o644,
	"/usr/share/fish/vendor_completions.d/firsthop.fish": 0o644,
	"/usr/share/man/man8/firsthop.8.gz":                  0o644,
	"/usr/share/doc/firsthop/changelog.gz (deb)":         0o644,
	"/usr/share/lintian/overrides/firsthop (deb)":        0o644,
	"/usr/share/zsh/vendor-completions/_firsthop (deb)":  0o644,
	"/usr/share/zsh/site-functions/_firsthop (rpm)":      0o644,
}

func TestContents(t *testing.T) {
	for _, file := range write(t, newBuild(t)) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			format := strings.TrimPrefix(filepath.Ext(file), ".")
			read := map[string]func(*testing.T, string) contents{"deb": readDeb, "rpm": readRPM}[format]
			c := read(t, file)
			checkFiles(t, format, c)
			checkFields(t, format, filepath.Base(file), c)
			checkScripts(t, format, c)
		})
	}
}

func checkFiles(t *testing.T, format string, c contents) {
	t.Helper()
	want := map[string]int64{}
	for name, mode := range wantFiles {
		name, of, only := strings.Cut(name, " (")
		if !only || strings.TrimSuffix(of, ")") == format {
			want[name] = mode
		}
	}
	for name, f := range c.files {
		mode, known := want[name]
		delete(want, name)
		switch {
		case f.owner != "root" || f.group != "root":
			t.Errorf("%s belongs to %s:%s", name, f.owner, f.group)
		case f.time != built.Unix():
			t.Errorf("%s is of the time %d", name, f.time)
		case f.dir && f.mode != 0o755:
			t.Errorf("directory %s has mode %o", name, f.mode)
		case f.dir:
			// An rpm that owned a system's directory would be in the way of the package that it is of.
			if format == "rpm" && path.Base(name) != "firsthop" && !strings.HasPrefix(name, "/usr/share/fish") && !strings.HasPrefix(name, "/usr/share/zsh") {
				t.Errorf("the package has the directory %s", name)
			}
		case !known:
			t.Errorf("%s is in the package", name)
		case f.mode != mode:
			t.Errorf("%s has mode %o, want %o", name, f.mode, mode)
		case f.config != (name == units.EnvironmentFile):
			t.Errorf("%s: kept as configuration: %v", name, f.config)
		case len(f.data) == 0:
			t.Errorf("%s is empty", name)
		}
	}
	for name := range want {
		t.Errorf("%s is not in the package", name)
	}
	unit, err := units.PackageUnit()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.files["/usr/lib/systemd/system/"+units.ServiceName].data; !bytes.Equal(got, unit) {
		t.Errorf("the unit is\n%s", got)
	}
	if _, there := c.files[units.PackageProgram]; !there {
		t.Errorf("the program is not at %s, from where the unit starts it", units.PackageProgram)
	}
	// What is commented in is not for everybody, and each line that is commented out must be one that works.
	for line := range strings.Lines(string(c.files[units.EnvironmentFile].data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			t.Errorf("%s sets %s", units.EnvironmentFile, line)
		}
	}
}

func checkFields(t *testing.T, format, name string, c contents) {
	t.Helper()
	arch := map[string]map[string]string{"deb": {"amd64": "amd64", "arm64": "arm64"}, "rpm": {"x86_64": "x86_64", "aarch64": "aarch64"}}
	want := map[string]string{"Package": "firsthop", "Version": "1.2.3~rc.1+5.gabc1234", "Depends": "", "Breaks": "systemd (<< 239)"}
	if format == "rpm" {
		maps.Copy(want, map[string]string{"Breaks": "systemd", "Release": "1", "Host": "localhost", "License": "Apache-2.0"})
	}
	if of := c.fields["Architecture"]; arch[format][of] == "" || !strings.Contains(name, of) {
		t.Errorf("%s is for %q", name, of)
	}
	for key, value := range want {
		if got := withoutOfRPM(c.fields[key]); got != value {
			t.Errorf("%s: %q, want %q", key, got, value)
		}
	}
}

// withoutOfRPM leaves out what an rpm requires of rpm itself.
func withoutOfRPM(list string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(list, ", "), func(name string) bool {
		return strings.HasPrefix(name, "rpmlib(") || name == "/bin/sh"
	}), ", ")
}

func checkScripts(t *testing.T, format string, c contents) {
	t.Helper()
	want := map[string][]string{"deb": {"postinst", "postrm", "prerm"}, "rpm": {"post", "postun", "preun"}}[format]
	if got := slices.Sorted(maps.Keys(c.scripts)); !slices.Equal(got, want) {
		t.Fatalf("scripts %q, want %q", got, want)
	}
	for name, text := range c.scripts {
		if strings.Contains(text, "@UNDO@") {
			t.Errorf("%s has a mark that is not filled", name)
		}
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if format == "deb" && !strings.HasPrefix(text, "#!/bin/sh\n") {
			t.Errorf("%s does not begin with #!/bin/sh", name)
		}
		for line := range strings.Lines(text) {
			// Nothing is started or stopped, by no means: what serves is touched by `firsthop uninstall` alone. A runtime
			// that runs is the exception: neither its restart nor its end touches traffic, and it must not outlive its program.
			for _, may := range []string{"systemctl try-restart firsthop.service", "deb-systemd-invoke try-restart firsthop.service", "command -v deb-systemd-invoke", `systemctl stop "$runtime"`} {
				line = strings.ReplaceAll(line, may, "")
			}
			if regexp.MustCompile(`systemctl.*(--now|start|stop)|deb-systemd-invoke|firsthop init( |$)|--force`).MatchString(line) && !strings.Contains(line, "echo") && !strings.HasPrefix(strings.TrimSpace(line), "#") {
				t.Errorf("%s has %q", name, line)
			}
		}
	}
}

func unzip(t *testing.T, data []byte) string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFilesThatShellsRead(t *testing.T) {
	for _, file := range write(t, newBuild(t))[:2] {
		read := readDeb
		if filepath.Ext(file) == ".rpm" {
			read = readRPM
		}
		for name, f := range read(t, file).files {
			shell := map[string]string{"/usr/share/bash-completion/completions/firsthop": "bash", "/usr/share/zsh/vendor-completions/_firsthop": "zsh",
				"/usr/share/zsh/site-functions/_firsthop": "zsh", "/usr/share/fish/vendor_completions.d/firsthop.fish": "fish"}[name]
			if shell == "" {
				continue
			}
			if !strings.Contains(string(f.data), "firsthop") {
				t.Errorf("%s is\n%s", name, f.data)
			}
			if _, err := exec.LookPath(shell); err != nil {
				continue
			}
			cmd := exec.Command(shell, "-n")
			cmd.Stdin = bytes.NewReader(f.data)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	}
}

func Example_sentence() {
	fmt.Println(sentence("report failures."))
	fmt.Println(sentence("cgroup2 DIR"))
	fmt.Println(sentence("STRENGTH of it"))
	// Output:
	// Report failures
	// cgroup2 DIR
	// STRENGTH of it
}
