// Package nodestatus says on the Node object how the node's Services are served: by a label, which DaemonSets select
// nodes by, and by a condition, which people and monitors read.
//
// Both are written by one patch of the subresource nodes/status. That an update of it may change labels is what the
// kubelet relies on, too (PatchNodeStatus of k8s.io/component-helpers: "Note that we don't reset ObjectMeta here"); it
// spares the right to patch nodes, which is the right to cordon them, and to taint them. deploy/runtime/rbac.yaml has
// the rest of the fence: a ValidatingAdmissionPolicy that lets the runtime change this label and this condition of its own
// Node, and nothing else.
//
// What is written follows what is proven. While nothing can be written the Node keeps the last state, with the time of
// the last heartbeat: a condition whose lastHeartbeatTime is older than a quarter of an hour is stale.
package nodestatus
