package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

const usualFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME

func TestBPFFSStates(t *testing.T) { runStage(t, "bpffs states", spec{clone: node}) }

func usual(t *testing.T) { mount(t, "bpf", DefaultBPFFS, "bpf", usualFlags, "mode=0700") }

// bpffsRow is a state of the node that is made, and how it is judged.
type bpffsRow struct {
	is     string
	make   func(t *testing.T)
	config Config
	want   BPFFSState
	err    error
	says   []string // parts of the error, warnings or notes
	silent bool     // nothing to warn of
}

func bpffsRows() []bpffsRow {
	const x = "/run/x"
	given := func(p string) Config { return Config{Path: p, Explicit: true} }
	return []bpffsRow{
		{is: "an empty directory is absent", make: func(*testing.T) {}, want: BPFFSAbsent, err: ErrAbsent},
		{is: "what systemd mounts is right", make: usual, want: BPFFSRight, silent: true},
		{is: "mode 0777 is wrong and can be fixed", want: BPFFSWrongMode, says: []string{"mode 0777", "chmod 0700 /sys/fs/bpf"},
			make: func(t *testing.T) { usual(t); must(t, os.Chmod(DefaultBPFFS, 0o777)) }},
		{is: "the kernel's default mode is wrong", want: BPFFSWrongMode, says: []string{"mode 1777", "without nosuid", "without nodev", "without noexec"},
			make: func(t *testing.T) { mount(t, "bpf", DefaultBPFFS, "bpf", 0, "") }},
		{is: "an owner who is not root is wrong", want: BPFFSWrongMode, says: []string{"owner 1000", "chown root"},
			make: func(t *testing.T) { usual(t); must(t, os.Chown(DefaultBPFFS, 1000, 0)) }},
		{is: "missing mount flags are only noted", want: BPFFSRight, says: []string{"without noexec"},
			make: func(t *testing.T) { mount(t, "bpf", DefaultBPFFS, "bpf", unix.MS_NOSUID, "mode=0700") }},
		{is: "a tmpfs is the wrong type", want: BPFFSWrongType, err: ErrWrongType, says: []string{"tmpfs", "umount /sys/fs/bpf"},
			make: func(t *testing.T) { mount(t, "none", DefaultBPFFS, "tmpfs", 0, "") }},
		{is: "a tmpfs over a bpffs says what it hides", want: BPFFSWrongType, err: ErrWrongType, says: []string{"hides a bpffs", "holds firsthop"},
			make: func(t *testing.T) {
				usual(t)
				must(t, os.Mkdir(DefaultBPFFS+"/firsthop", 0o700))
				mount(t, "none", DefaultBPFFS, "tmpfs", 0, "")
			}},
		{is: "two empty mounts are usable with a warning", want: BPFFSStacked, says: []string{"mounted twice", "hides mount"},
			make: func(t *testing.T) { usual(t); usual(t) }},
		{is: "a mount that hides our pins is an error", want: BPFFSStacked, err: ErrStacked, says: []string{"holding nothing", "firsthop", "umount /sys/fs/bpf"},
			make: func(t *testing.T) { usual(t); must(t, os.Mkdir(DefaultBPFFS+"/firsthop", 0o700)); usual(t) }},
		{is: "a mount that hides the pins of others is a warning", want: BPFFSStacked, says: []string{"on top holds firsthop", "which holds cilium"},
			make: func(t *testing.T) {
				usual(t)
				must(t, os.Mkdir(DefaultBPFFS+"/cilium", 0o700))
				usual(t)
				must(t, os.Mkdir(DefaultBPFFS+"/firsthop", 0o700))
			}},
		{is: "the upper mount is found though it was made first", want: BPFFSStacked, err: ErrStacked, says: []string{"holding older", "our pins (firsthop)"},
			make: func(t *testing.T) {
				must(t, os.MkdirAll(x, 0o755))
				mount(t, "bpf", x, "bpf", usualFlags, "mode=0700")
				must(t, os.Mkdir(x+"/older", 0o700))
				usual(t)
				must(t, os.Mkdir(DefaultBPFFS+"/firsthop", 0o700))
				mount(t, x, DefaultBPFFS, "", unix.MS_MOVE, "")
			}},
		{is: "three mounts are looked through to the lowest", want: BPFFSStacked, err: ErrStacked,
			make: func(t *testing.T) { usual(t); must(t, os.Mkdir(DefaultBPFFS+"/firsthop", 0o700)); usual(t); usual(t) }},
		{is: "a read-only superblock", want: BPFFSReadOnly, err: ErrReadOnly, says: []string{"mount -o remount,rw /sys/fs/bpf"},
			make: func(t *testing.T) { mount(t, "bpf", DefaultBPFFS, "bpf", usualFlags|unix.MS_RDONLY, "mode=0700") }},
		{is: "a read-only mount", want: BPFFSReadOnly, err: ErrReadOnly, says: []string{"mount -o remount,bind,rw /sys/fs/bpf"},
			make: func(t *testing.T) {
				usual(t)
				mount(t, "", DefaultBPFFS, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|usualFlags, "")
			}},
		{is: "a mount over a parent hides another", want: BPFFSRight, says: []string{"hidden by a mount over one of its parent"},
			make: func(t *testing.T) {
				usual(t)
				mount(t, "x", "/sys", "tmpfs", 0, "")
				must(t, os.MkdirAll(DefaultBPFFS, 0o755))
				usual(t)
			}},
		{is: "no directory", want: BPFFSNoDirectory, err: ErrNoDirectory, says: []string{"CONFIG_BPF_SYSCALL", "sysfs"},
			make: func(t *testing.T) { mount(t, "none", "/sys", "tmpfs", 0, "") }},
		{is: "sysfs mounted on the directory is absent", want: BPFFSAbsent, err: ErrAbsent,
			make: func(t *testing.T) { mount(t, DefaultBPFFS, DefaultBPFFS, "", unix.MS_BIND, "") }},
		{is: "a given path that is a link", config: given("/run/link"), want: BPFFSRight, says: []string{"symbolic link to /sys/fs/bpf"},
			make: func(t *testing.T) { usual(t); must(t, os.Symlink("../sys/fs//bpf/", "/run/link")) }},
		{is: "a given link that leads nowhere", config: given("/run/a/b"), want: BPFFSAbsent, err: ErrAbsent, says: []string{"does not exist"},
			make: func(*testing.T) {}},
		{is: "a given directory on a bpffs", config: given(DefaultBPFFS + "/mine"), want: BPFFSRight, says: []string{"directory of the bpffs mounted at /sys/fs/bpf"},
			make: func(t *testing.T) { usual(t); must(t, os.Mkdir(DefaultBPFFS+"/mine", 0o700)) }},
		{is: "a given directory with files", config: given(x), want: BPFFSNotEmpty, err: ErrNotEmpty, says: []string{"would hide precious"},
			make: func(t *testing.T) { must(t, os.MkdirAll(x+"/precious", 0o755)) }},
		{is: "a given path that is a file", config: given("/run/file"), want: BPFFSNoDirectory, err: ErrNoDirectory, says: []string{"it is a file"},
			make: func(t *testing.T) { must(t, os.WriteFile("/run/file", nil, 0o644)) }},
		{is: "a given path with blanks and a backslash", config: given("/run/a b\\#\tc\n"), want: BPFFSStacked, says: []string{"mounted twice"},
			make: func(t *testing.T) {
				p := "/run/a b\\#\tc\n"
				must(t, os.Mkdir(p, 0o755))
				mount(t, "bpf", p, "bpf", usualFlags, "mode=0700")
				mount(t, "bpf", p, "bpf", usualFlags, "mode=0700")
			}},
		{is: "a bind mount of a directory of a bpffs", config: given(x), want: BPFFSRight, says: []string{"only the directory /part"},
			make: func(t *testing.T) {
				usual(t)
				must(t, os.Mkdir(DefaultBPFFS+"/part", 0o700))
				bind(t, DefaultBPFFS+"/part", x)
			}},
	}
}

func stageBPFFSStates(t *testing.T) {
	startNode(t)
	for _, row := range bpffsRows() {
		t.Run(row.is, func(t *testing.T) {
			mount(t, "fh", "/run", "tmpfs", 0, "")
			defer cleanMounts(t)
			row.make(t)
			before := tableText(t)
			b, err := FindBPFFS(row.config)
			must(t, err)
			if b.State != row.want || !errors.Is(b.Err(), row.err) || (row.err == nil) != (b.Err() == nil) {
				t.Errorf("state %q, error %v; want %q, %v", b.State, b.Err(), row.want, row.err)
			}
			said := append(append([]string{}, b.Warnings...), b.Notes...)
			if b.Err() != nil {
				said = append(said, b.Err().Error())
			}
			for _, part := range row.says {
				if !anyContains(said, part) {
					t.Errorf("nothing says %q in %q", part, said)
				}
			}
			if row.silent && len(said) > 0 {
				t.Errorf("says %q, want nothing", said)
			}
			if after := tableText(t); after != before {
				t.Errorf("looking changed the mounts:\n%s\nto:\n%s", before, after)
			}
			if row.want != BPFFSAbsent {
				_, err := EnsureBPFFS(t.Context(), row.config)
				if !errors.Is(err, row.err) || (row.err == nil) != (err == nil) {
					t.Errorf("ensure: %v, want %v", err, row.err)
				}
				if after := tableText(t); after != before {
					t.Errorf("ensure changed the mounts:\n%s\nto:\n%s", before, after)
				}
			}
		})
	}
}

// cleanMounts takes away whatever a row mounted over the node's start.
func cleanMounts(t *testing.T) {
	for _, p := range []string{"/run/x", "/run/a b\\#\tc\n", "/run/a b\\#\tc\n", DefaultBPFFS, DefaultBPFFS, DefaultBPFFS, "/run"} {
		_ = unix.Unmount(p, unix.MNT_DETACH)
	}
	table, err := ownView().mounts(mountPointIs("/sys"))
	must(t, err)
	if len(table) > 1 {
		must(t, unix.Unmount("/sys", unix.MNT_DETACH))
	}
	for unix.Unmount(DefaultBPFFS, unix.MNT_DETACH) == nil {
	}
}

func TestBPFFSLifecycle(t *testing.T) { runStage(t, "bpffs lifecycle", spec{clone: node}) }

// stageBPFFSLifecycle mounts, mounts again, fills, and unmounts.
func stageBPFFSLifecycle(t *testing.T) {
	startNode(t)
	mount(t, "fh", "/run", "tmpfs", 0, "")
	keepsSource := keepsSource(t)
	must(t, os.MkdirAll("/run/root"+DefaultBPFFS, 0o755))
	// A given root that shows files and no processes: a mount there ends with the container, unless it propagates.
	must(t, unix.Mount("/run/root", "/run/root", "", unix.MS_BIND, ""))
	must(t, unix.Mount("", "/run/root", "", unix.MS_PRIVATE, ""))
	if b, err := EnsureBPFFS(t.Context(), Config{Root: "/run/root"}); !errors.Is(err, ErrNoHost) || b.State != BPFFSUnreachable || len(b.Actions) > 0 || !strings.Contains(err.Error(), "would stay in this container") {
		t.Errorf("below a root without processes: %s, %v", b.State, err)
	}
	must(t, unix.Mount("", "/run/root", "", unix.MS_SHARED, ""))
	for _, c := range []Config{{}, {Path: "/run/given/deep", Explicit: true}, {Root: "/run/root"}} {
		must(t, os.MkdirAll("/run/root"+DefaultBPFFS, 0o755))
		var records []string
		identity := "" // as recorded last
		c.Record = func(kind instance.Kind, target, former string) error {
			records = append(records, string(kind)+" "+target)
			table, err := ownView().mounts(mountPointIs(target))
			must(t, err)
			for _, m := range table { // killed right here, who could tell that it is ours?
				if kind == instance.KindMount && m.Type == "bpf" && !m.is(identity) {
					t.Errorf("%s was mounted before its identity %q was recorded: there is only %q", target, former, identity)
				}
			}
			if kind == instance.KindMount {
				identity = former
			}
			return nil
		}
		before := tableText(t)
		b, err := EnsureBPFFS(t.Context(), c)
		must(t, err)
		if b.State != BPFFSRight || b.Mount.Ours() != keepsSource || !b.Mount.is(identity) || len(b.Actions) == 0 || len(b.Warnings)+len(b.Notes) > 0 {
			t.Fatalf("after ensure: %+v", b)
		}
		if want := c.Root + c.bpffsPath(); b.Path != want {
			t.Errorf("at %s, want %s", b.Path, want)
		}
		if b.Mode&0o777 != 0o700 || b.UID != 0 {
			t.Errorf("mode %o, owner %d", b.Mode, b.UID)
		}
		for _, o := range []string{"nosuid", "nodev", "noexec", "relatime"} {
			if !slices.Contains(strings.Split(b.Mount.Options, ","), o) {
				t.Errorf("mounted with %s, not %s", b.Mount.Options, o)
			}
		}
		if records[len(records)-1] != "mount "+b.HostPath {
			t.Errorf("recorded %q", records)
		}
		n := len(records)
		again, err := EnsureBPFFS(t.Context(), c)
		must(t, err)
		if len(again.Actions) > 0 || len(records) != n || again.Mount.ID != b.Mount.ID {
			t.Errorf("the second time it did %q, recorded %q", again.Actions, records[n:])
		}
		must(t, os.Mkdir(b.Path+"/firsthop", 0o700))
		if err := UnmountBPFFS(t.Context(), c, identity); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "firsthop") {
			t.Errorf("unmount of a full one: %v", err)
		}
		must(t, os.Remove(b.Path+"/firsthop"))
		if err := UnmountBPFFS(t.Context(), c, "firsthop-other"); !errors.Is(err, ErrNotOurs) {
			t.Errorf("unmount of another one: %v", err)
		}
		must(t, UnmountBPFFS(t.Context(), c, identity))
		must(t, UnmountBPFFS(t.Context(), c, identity))
		if after := tableText(t); after != before {
			t.Errorf("unmount left:\n%s", after)
		}
	}
	unlock, err := lockDir(t.Context(), DefaultBPFFS)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := EnsureBPFFS(ctx, Config{}); !errors.Is(err, context.Canceled) || b.State != BPFFSAbsent {
		t.Errorf("ensure while another holds the lock: %s, %v", b.State, err)
	}
	unlock()
	usual(t)
	if err := UnmountBPFFS(t.Context(), Config{}, ""); !errors.Is(err, ErrNotOurs) {
		t.Errorf("unmount of a foreign one: %v", err)
	}
	stop := errors.New("disk full")
	if _, err := EnsureBPFFS(t.Context(), Config{Path: "/run/no", Explicit: true, Record: func(instance.Kind, string, string) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("ensure without a record: %v", err)
	}
	if _, err := os.Stat("/run/no"); err == nil {
		t.Error("the directory was made though it could not be recorded")
	}
}

func TestBPFFSRace(t *testing.T) { runStage(t, "bpffs race", spec{clone: node}) }

// stageBPFFSRace lets many processes mount at once.
func stageBPFFSRace(t *testing.T) {
	startNode(t)
	for round := range 5 {
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() { runStage(t, "bpffs ensure", spec{}) })
		}
		wg.Wait()
		if n := countType(t, "/proc/self", "bpf", DefaultBPFFS); n != 1 {
			t.Fatalf("round %d: %d mounts", round, n)
		}
		must(t, unix.Unmount(DefaultBPFFS, 0))
	}
}

func stageBPFFSEnsure(t *testing.T) {
	b, err := EnsureBPFFS(t.Context(), Config{})
	if err != nil || b.State != BPFFSRight {
		t.Errorf("%v, %v", b.State, err)
	}
}

func TestBPFFSSettles(t *testing.T) { runStage(t, "bpffs settle", spec{clone: node}) }

// stageBPFFSSettle plays the races that a lock does not prevent, with a tool
// that knows nothing of us.
func stageBPFFSSettle(t *testing.T) {
	startNode(t)
	v := ownView()
	ours := func(source string) (identity string) {
		mount(t, source, DefaultBPFFS, "bpf", usualFlags, "mode=0700")
		identity, err := identify(v, DefaultBPFFS, source)
		must(t, err)
		return identity
	}
	own := ""
	mine := func() { own = ours("firsthop-mine") }
	settled := func() bool {
		stays, err := settle(t.Context(), v, DefaultBPFFS, own)
		must(t, err)
		return stays
	}
	ownOnTop := func() bool {
		b, err := FindBPFFS(Config{})
		must(t, err)
		return b.Mount.is(own)
	}

	mine()
	if !settled() || !ownOnTop() {
		t.Error("a mount alone does not stay")
	}
	must(t, unix.Unmount(DefaultBPFFS, 0))

	usual(t)
	mine()
	if settled() || ownOnTop() || countType(t, "/proc/self", "bpf", DefaultBPFFS) != 1 {
		t.Error("a mount over another's was not taken off")
	}
	must(t, unix.Unmount(DefaultBPFFS, 0))

	// Another that does as we do is over ours: we wait for it to go.
	mine()
	other := ours("firsthop-other")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if stays, err := settle(context.Background(), v, DefaultBPFFS, other); stays || err != nil {
			t.Errorf("the upper one stays: %v", err)
		}
	}()
	if !settled() || !ownOnTop() {
		t.Error("the lower one did not win")
	}
	<-gone

	// Another that stays over ours.
	usual(t)
	start := time.Now()
	if !settled() || time.Since(start) < settleFor {
		t.Error("did not wait for the upper one")
	}
	b, err := FindBPFFS(Config{})
	must(t, err)
	if b.State != BPFFSStacked || b.Err() != nil || b.Mount.Ours() {
		t.Errorf("%s, %v", b.State, b.Err())
	}
	if err := UnmountBPFFS(t.Context(), Config{}, ""); !errors.Is(err, ErrNotOurs) {
		t.Errorf("unmount of the upper one: %v", err)
	}
}

// A seccomp profile may know fsopen and not move_mount, with which a mount is made that is recorded before it is there.
// Then, as on a kernel without either, mount(2) is the way, and what is recorded finds the mount again.
func TestEnsureBPFFSWithoutMoveMount(t *testing.T) {
	for _, errno := range []string{"EPERM", "ENOSYS", "all"} {
		runStage(t, "move_mount refused", spec{clone: node, arg: errno})
	}
}

func stageMoveMountRefused(t *testing.T) {
	startNode(t)
	switch stageArg() {
	case "EPERM":
		must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_MOVE_MOUNT, Errno: unix.EPERM}))
	case "ENOSYS":
		must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_MOVE_MOUNT, Errno: unix.ENOSYS}))
	default:
		must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_FSOPEN, Errno: unix.ENOSYS}, lab.Refusal{Call: unix.SYS_MOVE_MOUNT, Errno: unix.ENOSYS}))
	}
	var recorded []string
	c := Config{Record: func(kind instance.Kind, target, identity string) error {
		if kind == instance.KindMount && target == DefaultBPFFS {
			recorded = append(recorded, identity)
		}
		return nil
	}}
	b, err := EnsureBPFFS(t.Context(), c)
	must(t, err)
	if b.State != BPFFSRight || countType(t, "/proc/self", "bpf", DefaultBPFFS) != 1 {
		t.Fatalf("%+v", b)
	}
	if len(recorded) == 0 || !b.Mount.is(recorded[len(recorded)-1]) {
		t.Fatalf("recorded %v, which is not %+v", recorded, b.Mount)
	}
	must(t, UnmountBPFFS(t.Context(), c, recorded[len(recorded)-1]))
	if countType(t, "/proc/self", "bpf", DefaultBPFFS) != 0 {
		t.Error("it is still mounted")
	}
}

// The usual case, a right mount being there, with few and with many others.
func BenchmarkFindBPFFS(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprintf("beside %d mounts", others), func(b *testing.B) {
			inOwnNamespace(b, func() {
				mount(b, "bpf", DefaultBPFFS, "bpf", usualFlags, "mode=0700")
				mount(b, "x", "/run", "tmpfs", 0, "")
				for i := range others {
					p := fmt.Sprintf("/run/%d", i)
					must(b, os.Mkdir(p, 0o755))
					mount(b, "x", p, "tmpfs", unix.MS_RDONLY, "")
				}
				for b.Loop() {
					if f, err := FindBPFFS(Config{Path: DefaultBPFFS, Explicit: true}); err != nil || f.State != BPFFSRight {
						b.Fatal(f.State, err)
					}
				}
			})
		})
	}
}
