// Package scenes has what users do with firsthop on a real cluster, as tests on package nodes: each under load, and no
// connection may fail. They run by `make test-cluster`, and not with the other tests of this module.
package scenes
