// Package apihealth keeps the API service of a node on API servers that live.
//
// A Monitor knows the endpoints, asks each of them all the time whether it is
// ready, and tells the runtime which addresses the API service shall lead to.
// It needs no API: it works while every API server is down, and finds them
// when they come back, elsewhere too. A Dialer gives the runtime's own client a
// way to any of them while the way through the Service IP is broken.
//
//   - monitor.go: the loop, and its inputs.
//   - config.go: what it needs to know, and the times that it keeps.
//   - target.go: one endpoint and the goroutine that asks it.
//   - members.go: which endpoints are known, and which of them are asked.
//     Which of them get the traffic is apiserver.Choose.
//   - look.go: files of the host, and host names.
//   - save.go: the last known good addresses on disk.
//   - dialer.go: how the runtime's own connections reach a server.
//   - status.go: what is known, for status, doctor and metrics.
//
// # Who is asked
//
// Endpoints given by hand are used alone. Otherwise there are two tiers. The
// first is what the API itself names (SetEndpoints); until it has, what the
// table held when the runtime started. The second is all else: files of the
// host, the saved addresses, those that once lived. It is asked, and used, only
// while none of the first lives: an address from a file may by now belong to
// another machine, and a load balancer must not be asked by every node.
//
// # How long it takes
//
// A server that is killed closes its connections, which is noticed at once. One
// that falls silent is out after at most Interval and Timeout, 1.6 seconds with
// the defaults: of the two seconds that are promised, the rest is for a busy node.
// One that comes back is in again with the first answer; a dead one is asked at
// least every two seconds.
package apihealth
