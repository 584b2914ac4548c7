package natinit

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// ErrNoCookie says that the cookie of a network namespace can't be told here,
// and that asking again doesn't help.
var ErrNoCookie = errors.New("the network namespace's cookie can't be told")

// NetnsCookie is the cookie of the calling thread's network namespace, as BPF
// programs know it. It is never 0. The error matches ErrNoCookie where the kernel
// has no SO_NETNS_COOKIE (before Linux 5.14, kernel commit e8b9eab99232).
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, fmt.Errorf("%w: the kernel has no SO_NETNS_COOKIE (Linux 5.14)", ErrNoCookie)
	}
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

// CookiesConfig says how cookies may be told.
type CookiesConfig struct {
	Features bpf.Features
	// NoOption: as if the kernel had no SO_NETNS_COOKIE.
	NoOption bool
	// Cgroups lists the v2 directories where a program may be attached for as long
	// as the Cookies is open, the best first: those that this process is in, from
	// the lowest on (mounts.OwnCgroups). It is called only where it matters.
	Cgroups func() ([]string, error)
}

// Cookies tells the cookies of network namespaces by what the kernel has:
//
//   - SO_NETNS_COOKIE, Linux 5.14.
//   - bpf.Cookies, Linux 5.8: attached at the first question, to the lowest
//     cgroup that works, until Close or the end of the process.
//   - Before, programs don't know cookies either: ErrNoCookie.
//
// Safe for concurrent use.
type Cookies struct {
	cfg CookiesConfig

	mu sync.Mutex
	by *bpf.Cookies
}

// NewCookies attaches nothing yet.
func NewCookies(cfg CookiesConfig) *Cookies { return &Cookies{cfg: cfg} }

// Cookie is the cookie of the calling thread's network namespace, which is
// never 0. The error matches ErrNoCookie where that can't be told at all.
func (c *Cookies) Cookie() (uint64, error) {
	if !c.cfg.NoOption {
		cookie, err := NetnsCookie()
		if !errors.Is(err, ErrNoCookie) {
			return cookie, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by != nil {
		cookie, err := c.by.Cookie()
		if !errors.Is(err, bpf.ErrNotReached) {
			return cookie, err
		}
		if err := c.close(); err != nil { // somebody has moved this process to another cgroup
			return 0, err
		}
	}
	return c.open()
}

// open attaches the program to the first cgroup where it works, and asks it.
func (c *Cookies) open() (uint64, error) {
	if !c.cfg.Features.NetnsCookie || !c.cfg.Features.Link {
		return 0, fmt.Errorf("%w: that needs SO_NETNS_COOKIE (Linux 5.14), or bpf_get_netns_cookie and bpf_link (5.8)", ErrNoCookie)
	}
	cgroups, err := c.cfg.Cgroups()
	if err != nil {
		return 0, fmt.Errorf("find the cgroup of this process: %w", err)
	}
	failed := []error{errors.New("the kernel has no SO_NETNS_COOKIE (Linux 5.14)")}
	if len(cgroups) == 0 {
		failed = append(failed, errors.New("no program can be asked: this process is not in the cgroup to which programs are attached"))
	}
	for _, dir := range cgroups {
		by, err := bpf.OpenCookies(dir)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		cookie, err := by.Cookie()
		if err == nil {
			c.by = by
			return cookie, nil
		}
		failed = append(failed, fmt.Errorf("attached to %s: %w", dir, err), by.Close())
	}
	if err = errors.Join(failed...); passing(err) {
		return 0, err
	}
	return 0, fmt.Errorf("%w: %w", ErrNoCookie, err)
}

// passing reports whether an error may be gone the next time.
func passing(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN, unix.EINTR}, func(e error) bool { return errors.Is(err, e) })
}

func (c *Cookies) close() error {
	if c.by == nil {
		return nil
	}
	by := c.by
	c.by = nil
	return by.Close()
}

// Close detaches what was attached.
func (c *Cookies) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.close()
}
