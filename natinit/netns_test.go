package natinit

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/test/lab"
)

// onBareThread runs fn in a new network namespace, in which nothing is up.
func onBareThread(fn func() error) error {
	return ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

func TestCookiesAreThoseOfTheKernel(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be told")
	lab.VerifyNoLeaks(t)
	own := lab.MainCgroup(t)
	l := lab.New(t)
	cookies := newCookies(t, true)
	seen := map[uint64]bool{}
	look := func() error {
		cookie, err := cookies.Cookie()
		if again, err := cookies.Cookie(); err != nil || again != cookie || cookie == 0 || seen[cookie] {
			t.Errorf("cookie %d, then %d, %v; before it were %v", cookie, again, err, seen)
		}
		seen[cookie] = true
		if kernels, err := NetnsCookie(); !errors.Is(err, ErrNoCookie) && (kernels != cookie || err != nil) {
			t.Errorf("cookie %d, the kernel says %d, %v", cookie, kernels, err)
		}
		return err
	}
	if n := lab.AttachedToBind(t, own); n != 0 {
		t.Fatalf("%d programs before the first question", n)
	}
	must(t, look())
	must(t, l.Do(look))
	must(t, onBareThread(look))
	if n := lab.AttachedToBind(t, own); n != 1 {
		t.Errorf("%d programs are attached to our own cgroup, want one for all questions", n)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0") // everybody else binds as ever
	must(t, err)
	must(t, ln.Close())
	must(t, cookies.Close())
	if n := lab.AttachedToBind(t, own); n != 0 {
		t.Errorf("%d programs are still attached", n)
	}
}

func TestCookiesAttachNothingWhereTheKernelTells(t *testing.T) {
	lab.NeedsLinux(t, 5, 14, "SO_NETNS_COOKIE")
	cookies := NewCookies(CookiesConfig{Features: allFeatures(), Cgroups: func() ([]string, error) { panic("not needed") }})
	if cookie, err := cookies.Cookie(); err != nil || cookie == 0 {
		t.Error(cookie, err)
	}
}

func TestCookiesAttachWhereTheySeeThisProcess(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be told")
	lab.VerifyNoLeaks(t)
	own, l := lab.MainCgroup(t), lab.New(t)
	absent := filepath.Join(l.Cgroup, "absent")
	cookies := newCookies(t, true, absent, l.Cgroup, own)
	if cookie, err := cookies.Cookie(); err != nil || cookie == 0 {
		t.Error(cookie, err)
	}
	if other, here := lab.AttachedToBind(t, l.Cgroup), lab.AttachedToBind(t, own); other != 0 || here != 1 {
		t.Errorf("%d programs at a cgroup that we are not in, %d at ours", other, here)
	}
	cookies = newCookies(t, true, absent, l.Cgroup)
	if cookie, err := cookies.Cookie(); !errors.Is(err, ErrNoCookie) || !errors.Is(err, bpf.ErrNotReached) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("from outside: %d, %v", cookie, err)
	}
	if n := lab.AttachedToBind(t, l.Cgroup); n != 0 {
		t.Errorf("%d programs are left at a cgroup that we are not in", n)
	}
}

// join moves this process.
func join(cgroup string) error {
	return os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

func TestCookiesFollowThisProcess(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be told")
	lab.VerifyNoLeaks(t)
	own := lab.MainCgroup(t)
	first, second := filepath.Join(own, "first"), filepath.Join(own, "second")
	for _, dir := range []string{first, second} {
		must(t, os.Mkdir(dir, 0o755))
		defer os.Remove(dir)
	}
	defer func() { must(t, join(own)) }()
	cookies := newCookies(t, true, first, second)
	for _, dir := range []string{first, second, first} {
		must(t, join(dir))
		if cookie, err := cookies.Cookie(); err != nil || cookie == 0 {
			t.Errorf("in %s: %d, %v", dir, cookie, err)
		}
		if got := []int{lab.AttachedToBind(t, first), lab.AttachedToBind(t, second)}; !slices.Equal(got, map[string][]int{first: {1, 0}, second: {0, 1}}[dir]) {
			t.Errorf("in %s: %d programs are attached to the two", dir, got)
		}
	}
	must(t, cookies.Close())
}

func TestCookiesOfOldKernels(t *testing.T) {
	for _, f := range []bpf.Features{{}, {NetnsCookie: true}, {Link: true}} {
		cookies := NewCookies(CookiesConfig{Features: f, NoOption: true, Cgroups: func() ([]string, error) { panic("not needed") }})
		if cookie, err := cookies.Cookie(); !errors.Is(err, ErrNoCookie) {
			t.Errorf("%+v: %d, %v", f, cookie, err)
		}
	}
}

// What may be gone the next time is no reason to give up.
func TestCookiesRetryWhatMayPass(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be told")
	own := lab.MainCgroup(t)
	broken := error(unix.EMFILE)
	cookies := NewCookies(CookiesConfig{Features: allFeatures(), NoOption: true, Cgroups: func() ([]string, error) { return []string{own}, broken }})
	defer cookies.Close()
	if cookie, err := cookies.Cookie(); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoCookie) {
		t.Errorf("cookie %d, %v", cookie, err)
	}
	broken = nil
	if cookie, err := cookies.Cookie(); err != nil || cookie == 0 {
		t.Errorf("cookie %d, %v", cookie, err)
	}
}
