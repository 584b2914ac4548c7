// Package uninstall undoes what an instance has changed on the host, and nothing
// else.
package uninstall
