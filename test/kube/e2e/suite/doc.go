// Package suite is what of Kubernetes' own end-to-end tests is about the network. It has no test but with the build tag e2e, as
// it takes minutes to compile; package e2e builds and runs it.
package suite
