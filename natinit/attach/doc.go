// Package attach attaches the load balancer's programs to hooks, as one transaction: it records each change in the
// journal before it makes it, exchanges programs of a former version, inspects what is attached, and removes it.
//
// The caller holds the instance's lock. Programs of others are never detached, replaced or moved.
package attach
