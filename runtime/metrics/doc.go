// Package metrics reports to Prometheus what the runtime does.
//
//   - metrics.go: what the runtime reports, and the handler that is asked.
//   - collect.go: what is asked of the runtime's parts when a page is made.
//   - traffic.go: what Services did, from the counters in the kernel.
//   - sockets.go: what became of sockets whose backend went.
//   - programming.go: how long changes take from their cause to the table.
//   - process.go: this process.
//   - histogram.go, page.go: histograms, and the text that Prometheus reads.
//
// Metrics named kubeproxy_ mean what kube-proxy's (1.36) of the same name mean, with its buckets, so that its dashboards
// and alerts go on. Where that has a label ip_family they have none: one write is for both families. All others begin
// with firsthop_, but for those about the process and Go, which have the names that Prometheus' own client gives them.
//
// docs/decisions/0009 says why no client library is used. The tests hold the page against Prometheus' own parser and
// linter.
//
// # How many there are
//
// The page has some two hundred lines, however large the cluster, and two for each Service that had sockets moved or ended. Counters by Service are only made when asked for
// (Config.PerService): two for each Service, port and family, on each node; with 10,000 Services a page of 2.9 MB, 110 kB
// zipped. There is no "top ten": series that come and go with the order of Services are worth nothing over time.
package metrics
