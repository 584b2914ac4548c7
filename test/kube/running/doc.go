// Package running tests the running program, `firsthop init` and `firsthop run`, against real API servers: what it
// serves, that it may be killed, that the API servers may, and that nothing of it is seen by clients in a storm of
// changes. Its tests are long; FIRSTHOP_TEST_LONG=1 makes them longer.
//
// Probers (package probe) are the clients, in the cgroup of a node or of a pod of it. Backends are echo servers of
// package standin, reached at addresses of pods of the node, and of prefixes that are local to the hub: one server has
// any number of addresses there.
package running
