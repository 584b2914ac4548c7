// Package cluster installs firsthop in a cluster, from an administrator's kubeconfig: it looks, lets every node check
// itself, applies what package deploy renders, waits for the proof of one node after the other, and says what comes next.
//
// All of it can be interrupted and run again. What runs in the cluster is written by server-side apply, so that a second
// run changes nothing. Before anything is written, a ConfigMap notes what was there (record.go): uninstall restores it. Which nodes
// must wait for their turn, or are not supported, is a label on them that the DaemonSet's affinity knows (nodes.go); an
// interrupted roll-out leaves nodes that wait, never one that is half done.
//
// kube-proxy is not touched. Connections are served at connect time, and each node says whether that is proven; packets
// from outside of the cluster are not served by firsthop, which is a fact of its own (PacketPath).
package cluster
