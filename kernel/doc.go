// Package kernel says whether the running kernel can carry the dataplane,
// and why.
//
// It looks at three things: the release (uname, /proc/version, Ubuntu's
// /proc/version_signature), the distribution (the host's os-release) and
// what the kernel really does (probes). The release decides whether the
// kernel is one that we promise to work on; the probes decide whether it
// does. Neither replaces the other: distributions backport (RHEL 8 calls
// itself 4.18 and has the hooks of 5.2), and builds, lockdown and seccomp
// take away what a version promises.
//
//	report, err := kernel.Check(kernel.Config{})
//	if err != nil { … }                       // a wrong Config
//	if err := report.Err(); err != nil { … }  // ErrUnsupported, ErrNoRights, ErrUndetermined
//	programs, err := bpf.LoadPrograms(maps, balancer, report.Features())
//
// Nothing here writes to the host or attaches anything. One thing is not free
// of effect: below Linux 5.11 the process's own RLIMIT_MEMLOCK is raised
// ([RaiseMemlock]).
package kernel
