// Package diagnose reads a node and a running instance, and changes nothing: check
// (is this node ready for init), doctor (does every invariant hold), status, the
// table, and what a connection would do.
package diagnose
