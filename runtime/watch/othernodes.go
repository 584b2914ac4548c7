package watch

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// slimNode is a Node of which only the name and the addresses are decoded. Each
// kubelet updates its Node's status every few minutes, and sooner when anything
// of it changes; most of a Node is names of images, labels and managed fields.
type slimNode struct{ corev1.Node }

// The numbers of fields that are decoded (k8s.io/api/core/v1/generated.proto,
// k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto).
const (
	nodeStatus      = 3  // of a Node
	statusAddresses = 5  // of a NodeStatus
	metaName        = 1  // of an ObjectMeta
	metaVersion     = 6  // likewise
	metaAnnotations = 12 // likewise; of a bookmark only, which says by one that a list is complete
)

// Unmarshal implements object, and is what client-go's protobuf serializer calls.
func (n *slimNode) Unmarshal(data []byte) error {
	var kept []byte
	err := eachField(data, func(field protowire.Number, kind protowire.Type, whole []byte) error {
		var wanted func(field protowire.Number, whole []byte) bool
		switch {
		case kind != protowire.BytesType:
			return nil
		case field == objectMeta:
			wanted = func(f protowire.Number, whole []byte) bool {
				return f == metaName || f == metaVersion || f == metaAnnotations && bytes.Contains(whole, []byte(metav1.InitialEventsAnnotationKey))
			}
		case field == nodeStatus:
			wanted = func(f protowire.Number, _ []byte) bool { return f == statusAddresses }
		default:
			return nil
		}
		_, _, tag := protowire.ConsumeTag(whole)
		message, _ := protowire.ConsumeBytes(whole[tag:])
		var part []byte
		err := eachField(message, func(f protowire.Number, _ protowire.Type, inner []byte) error {
			if wanted(f, inner) {
				part = append(part, inner...)
			}
			return nil
		})
		kept = protowire.AppendBytes(append(kept, whole[:tag]...), part)
		return err
	})
	if err != nil {
		return err
	}
	return n.Node.Unmarshal(kept)
}

// DeepCopyObject implements runtime.Object.
func (n *slimNode) DeepCopyObject() runtime.Object { return &slimNode{*n.Node.DeepCopy()} }

// slimNodeList is a NodeList of slimNodes.
type slimNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []slimNode `json:"items"`
}

// Reset is for client-go's protobuf serializer.
func (l *slimNodeList) Reset() { *l = slimNodeList{} }

// Unmarshal likewise.
func (l *slimNodeList) Unmarshal(data []byte) error {
	return eachField(data, func(field protowire.Number, kind protowire.Type, whole []byte) error {
		if kind != protowire.BytesType {
			return nil
		}
		_, _, tag := protowire.ConsumeTag(whole)
		message, _ := protowire.ConsumeBytes(whole[tag:])
		switch field {
		case listMeta:
			return l.ListMeta.Unmarshal(message)
		case listItem:
			l.Items = append(l.Items, slimNode{})
			return l.Items[len(l.Items)-1].Unmarshal(message)
		}
		return nil
	})
}

// DeepCopyObject implements runtime.Object.
func (l *slimNodeList) DeepCopyObject() runtime.Object {
	out := &slimNodeList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, slimNode{*l.Items[i].Node.DeepCopy()})
	}
	return out
}
