package bench

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// describe fills in on what, and with what, the figures were got.
func (r *Result) describe(t testing.TB, w *world) {
	t.Helper()
	var uts unix.Utsname
	must(t, unix.Uname(&uts))
	r.Kernel = unix.ByteSliceToString(uts.Release[:])
	r.CPUs, r.CPU = runtime.NumCPU(), cpuModel()
	r.Go = runtime.Version()
	r.Firsthop = strings.TrimPrefix(strings.Fields(output(t, w.opts.Firsthop, "version"))[1], "v")
	r.Proxy = strings.TrimPrefix(output(t, w.c.ProgramDir()+"/kube-proxy", "--version"), "Kubernetes ")
	r.Tools = output(t, "iptables", "--version") + ", " + output(t, "iptables-legacy", "--version") + ", " + output(t, "nft", "--version")
}

// output is the first line that a program says.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("run %s: %v", name, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// cpuModel is what the kernel says of the first processor; arm64 has no names.
func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(data)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
