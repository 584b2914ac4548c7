// Package cluster gives a test a Kubernetes cluster inside one machine: etcd, one or more real API servers, and nodes,
// each a lab (package test/lab) with a network namespace, a cgroup and a bpffs of its own.
//
//	c := cluster.New(t, cluster.Config{Servers: 2})
//	n := c.AddNode(cluster.NodeConfig{Name: "node-a", Zone: "zone-a"})
//	c.Apply(&corev1.Service{…}, &discoveryv1.EndpointSlice{…})
//	n.StartKubeProxy("nftables")
//	c.Servers[1].Kill()
//
// # The network
//
// The hub is a lab that has etcd, the API servers and a bridge. The API servers listen on addresses of the hub's
// loopback, 192.0.2.11 and following, port 6443, as machines beyond a router would; they go away as such do
// ([Server.Vanish]). Nodes are on the bridge, 192.168.0.0/24 and fd00:168::/64, with the hub as their router; it routes
// each node's pods (10.244.N.0/24 and fd00:244:0:N::/64) there. Clients outside of the cluster are pods of the hub
// ([Cluster.AddClient]). Services have 10.96.0.0/16 and fd00:96::/112.
//
// There are no controllers and no scheduler: nothing makes EndpointSlices, or ServiceAccounts of a new namespace, but
// the test.
package cluster
