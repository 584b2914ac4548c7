package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemd itself reads the unit: what it doesn't know or like, it says.
func TestRuntimeUnitIsAUnit(t *testing.T) {
	data, err := RuntimeUnit()
	if err != nil {
		t.Fatal(err)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "firsthop")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), PackageProgram, program)
	text = strings.ReplaceAll(text, "man:firsthop(8) ", "")
	path := filepath.Join(dir, RuntimeServiceName)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), RuntimeServiceName+":") {
		t.Errorf("systemd-analyze: %v\n%s\n%s", err, out, text)
	}
	for _, want := range []string{"Type=notify", "WatchdogSec=60s", "Restart=always", "After=" + ServiceName} {
		if !strings.Contains(text, want) {
			t.Errorf("the unit lacks %s:\n%s", want, text)
		}
	}
}
