// Package lab gives a test, a benchmark or the demo a machine of its own inside the real kernel: a network namespace,
// a cgroup of the v2 hierarchy, a bpffs and the two directories that firsthop writes to. Nothing that runs in a lab can
// reach the machine's own network, and nothing that firsthop attaches in a lab acts outside of the lab's cgroup.
//
//	l := lab.New(t)
//	l.AddAddr("192.0.2.11/32", "2001:db8::11/128")
//	ln, err := l.Listen("tcp", "192.0.2.11:6443")
//	out, err := l.Command(ctx, "bin/firsthop", append([]string{"init"}, l.Flags()...)...).CombinedOutput()
//
// # What runs where
//
// The test process itself stays outside: only the processes of [Lab.Command] are in the cgroup, so only they see what
// connect-time programs do. Sockets are another matter: [Lab.Do], [Lab.Listen], [Lab.ListenPacket] and
// [Lab.DialContext] make sockets of the test process that live in the lab's network namespace (a socket keeps the
// namespace of its birth), which is right for servers, and for connections that must not be translated.
//
// # Clean-up
//
// A lab is removed by t.Cleanup, after failures and panics too. What a killed test process leaves behind carries its
// process id and start time in its name and is removed by [Sweep], which the first lab of every process calls.
// [VerifyNoLeaks] and [RunMain] assert that nothing is left. [RunMainInCgroup] has the tests' own process in a cgroup of
// its own, for what attaches to that.
package lab
