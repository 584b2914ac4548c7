// Package oracle asks kube-proxy's own packages what it would do with random Services and EndpointSlices, asks
// runtime/services the same, and wants the same answer: the same frontends, and behind each the same endpoints for
// clients inside and outside of the cluster. TestOracle does it; its flags repeat one case or make more.
//
// Both sides are asked twice: about objects that come and change one by one (kube-proxy's change trackers, our Table),
// and, to explain a difference, about all of them at once.
//
// Where we differ on purpose, Differences has an entry with the reason and a rewriting of the objects: asked about
// those, kube-proxy must do what we do with the objects as they were. So an entry excuses just what it says, and one
// that excuses nothing any more makes the test fail.
package oracle
