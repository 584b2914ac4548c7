// Package workloads gives the programs in the kernel what they must know of the
// network namespaces of a node: which pods want no translation, and by which
// address a client is judged where a Service has source ranges.
//
// A pod opts out with the annotation
//
//	firsthop.io/connect-time: "off"
//
// which may come and go while it runs. Its sockets then reach Service IPs as if
// firsthop weren't there: for sidecars of service meshes, which must see the
// Service's address. A pod with hostNetwork can't opt out alone, as it shares
// the host's namespace; nor is it heard while nothing else serves Services.
// Either is a Problem, and the pod stays served.
//
// A pod's address is known some time after its namespace, and its processes may
// run by then: what they connect in their first moments is translated. Sockets
// that are connected stay as they are.
//
// # Where the truth is
//
// The API says which pods there are, what they want and which addresses they
// have; /proc and /run/netns say which namespaces there are, the kernel says
// their cookies and addresses. A pod is the namespace that has one of its
// addresses. Where several claim it (a container with CAP_NET_ADMIN gives itself
// what it likes), it's the one with a process in the pod's cgroup, else none.
//
// # What it costs
//
// Nothing, while no pod opts out and no Service has source ranges: namespaces
// are not looked for then. Otherwise all are looked at when a pod comes, changes or
// goes, a few times more until the pod's namespace is there, and every 30 s. One
// look costs a stat for each process and a visit for each namespace: 1 ms of
// processor time with 240 processes and 10 pods, 8 ms with 1,140 and 100.
//
// # Kernels
//
// Programs know namespaces from Linux 5.7, processes can ask for their names from
// 5.14; in between a program tells them (natinit.Cookies). Below 5.7 all of a node
// is one client, with the cookie 0: source ranges judge it by the node's
// addresses, no pod can opt out. Where programs know names and we cannot learn them
// (natinit.ErrNoCookie), source ranges reject every client, as no client's address can be
// given, and no pod can opt out either.
package workloads
