// Package health answers load balancers and people who ask whether this node serves.
//
//   - proxy.go: /healthz and /livez, with kube-proxy's meaning: may this node get traffic, does this proxy keep up.
//   - services.go: a Service's healthCheckNodePort: is there anything on this node to send its traffic to.
//   - server.go: an HTTP server that waits for its address as long as another program has it.
//   - holder.go: which program that is.
//
// The reference is pkg/proxy/healthcheck of Kubernetes 1.36. Unlike there, a port that is taken costs nothing but that
// port, and is taken when it gets free: https://github.com/projectcalico/calico/issues/10748.
package health
