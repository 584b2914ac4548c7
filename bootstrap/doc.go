// Package bootstrap is the init stage: it makes one thing true before anything
// else on the node needs it, that a connection to the kubernetes Service IP
// reaches a live API server.
//
// The stage is a list of steps (init.go; what they do is in steps_host.go,
// steps_address.go and steps_traffic.go), run in order under one lock
// (lock.go), with a report (report.go) whose exit code says where it ended. What it changes on the host outside its pins is noted before it is
// done (natinit/instance), and Uninstall takes back exactly that.
package bootstrap
