package qemu

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/vm/wire"
)

func TestInitramfsUnpacks(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	host := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(host, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	var root Initramfs
	root.AddData("etc/a/b", []byte("text"), 0o640)
	root.AddLink("bin", "usr/bin")
	if err := root.AddFile("usr/bin/program", host); err != nil {
		t.Fatal(err)
	}
	root.AddDir("var/lib")
	var archive bytes.Buffer
	if err := root.write(&archive); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cpio, "--list", "--verbose", "--quiet")
	cmd.Stdin = &archive
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"-rw-r-----", "-rwxr-xr-x", " etc/a/b", " bin -> usr/bin", " usr/bin/program", " var/lib", " dev/console"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// A guest that says nothing any more is given up; one that works within its time is not.
func TestWatch(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	late := make(chan struct{})
	said := make(chan bool)
	until := func(string) time.Duration { return 0 }
	go func() {
		said <- watch(r, 20*time.Millisecond, until, func(wire.Event) {}, func() { close(late) })
	}()
	if err := wire.Write(w, wire.Start, "job"); err != nil {
		t.Fatal(err)
	}
	<-late
	w.Close()
	if <-said {
		t.Error("a guest that hung is said to have ended well")
	}
	if !watch(strings.NewReader("H 5.10\nS job\nX {}\nB \n"), time.Hour, until, func(wire.Event) {}, func() { t.Error("late") }) {
		t.Error("a guest that said goodbye is not believed")
	}
}
