// Package sync is the runtime's loop: events become the desired table, and what differs from the table is written.
//
//	watch: objects of the API, host addresses ┐
//	apihealth: which API servers are alive    ┴─> Loop: services.Table ─> writer ─> NAT table
//	                                               └─> subscribers: metrics, health, sockets, workloads, node status
//
// The name shadows the standard library's: don't import both in one file.
package sync
