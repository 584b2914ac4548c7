// Package admin lets others see a running runtime: a unix socket in the run
// directory, with small JSON over HTTP. It is read only: what changes a node goes
// by the API server or by the command line.
//
//	GET /v1/services  every Service port, and the index that it has in the table
//	GET /v1/status    how the runtime is
//
// Names are what the table doesn't have: it holds numbers only.
package admin
