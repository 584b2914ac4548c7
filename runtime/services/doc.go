// Package services turns Kubernetes objects into the NAT table that they ask
// for. It is the only place that knows what a Service means; everything in it is
// pure: no clock, no network, no client.
//
// [Ports] is the whole meaning of one Service: its ports, a family at a time,
// each as a [nat.Service] with what that doesn't hold. [Table] keeps all Services
// and does the work of a change for the Service that changed.
//
// # Meaning
//
// The reference is kube-proxy (k8s.io/kubernetes/pkg/proxy, v1.36): which
// endpoints are usable (KEP-1669 for terminating ones), which of them topology
// hints leave (KEP-2433 for zones, KEP-3015 for nodes), which objects are not
// for a service proxy at all. Where objects that no API server of today accepts
// leave it open, or where kube-proxy is unsafe with them, this package decides:
//
//   - An address in several slices, or twice in one, counts once: one that isn't
//     terminating wins, then a ready one. kube-proxy lets the last one that isn't
//     terminating win, in random order of slices.
//   - Endpoints that are loopback, link-local, multicast or unspecified are
//     ignored, as are such external IPs (and, but for link-local, such addresses
//     of load balancers): they mean something else in every network namespace.
//     Endpoints that are not of their slice's family are ignored, too.
//   - A nil protocol is TCP, which is the API's default; kube-proxy panics.
//   - A source range that can't be read allows nobody, and it still limits:
//     kube-proxy ignores it, and allows everybody where it was the only one.
//     Ranges of the other family alone don't limit this one, as in kube-proxy.
//   - An address that is both a load balancer's and an external IP of one Service
//     is limited by source ranges. kube-proxy does so with nftables only.
//   - For clients outside of the cluster, source ranges limit external IPs too and, by annotation, node ports.
//     kube-proxy limits load balancer IPs only.
//   - Clients outside of the cluster use cluster IPs only by a setting. To kube-proxy, it is enough that their packets come.
//   - Ports of external and load balancer IPs that no Service has are refused to clients outside, unless a node or an API
//     server has the address. kube-proxy leaves them alone.
//   - Slices that are labelled service.kubernetes.io/service-proxy-name are
//     ignored as their Services are: the label is copied from there.
//   - An API service with internalTrafficPolicy Local keeps cluster traffic where
//     no endpoint of it is local: it is never left empty.
//   - The same frontend of several Services goes to one of them; see [Table].
package services
