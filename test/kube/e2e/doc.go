// Package e2e has Kubernetes judge firsthop: the end-to-end tests of the network (`[sig-network]`) of the version that go.mod
// names run against a cluster of three nodes without kube-proxy. A list says which tests are expected to fail, and why; the
// run fails where another one fails, or one of the list passes. With -proxy kube-proxy, the same runs with kube-proxy, for
// comparison. `make test-e2e` does it.
//
// The tests' images can't be pulled: they are made of Kubernetes' own programs and of Debian's packages.
package e2e
