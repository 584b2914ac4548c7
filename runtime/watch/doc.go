// Package watch follows the objects that the runtime is made of: Services,
// EndpointSlices, the node, and the node's Pods.
//
// It uses client-go's reflectors without its stores: the handler of the events
// keeps the objects, once, stripped to what is used. Objects come as protobuf:
// Services and slices by a list that is read while it comes when the runtime
// starts (docs/decisions/0011), and else by watch-list where the server has it
// (Kubernetes 1.32; client-go's default since 1.35, and it falls back by itself).
package watch
