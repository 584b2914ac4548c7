// Package bootstrap is the init stage: it makes one thing true before anything
// else on the node needs it, that a connection to the kubernetes Service IP
// reaches a live API server.
//
// The stage is a list of steps (init.go; what they do is in steps_host.go,
// steps_address.go, steps_traffic.go and steps_persist.go), run in order under
// one lock, with a report (report.go) whose exit code says where it ended. What
// it changes on the host outside its pins is noted before it is done. Lock and
// journal are natinit/instance's; bootstrap/uninstall undoes exactly what is noted.
package bootstrap
