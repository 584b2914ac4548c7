package workloads

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
)

// Problem is something that a pod asks for and doesn't get.
type Problem struct {
	Pod     types.NamespacedName
	Reason  Reason
	Message string // what, and what becomes of it
}

func (p Problem) String() string { return fmt.Sprintf("Pod %s: %s", p.Pod, p.Message) }

// Reason is a Problem's kind in one word, as events have it.
type Reason string

// The reasons.
const (
	BadAnnotation   Reason = "BadAnnotation"   // neither on nor off
	HostNetwork     Reason = "HostNetwork"     // shares the host's namespace, so can't opt out alone
	NothingElse     Reason = "NothingElse"     // opted out, nothing else serves Services on this node
	NoCookies       Reason = "NoCookies"       // the kernel doesn't name network namespaces
	NoNamespace     Reason = "NoNamespace"     // no network namespace has the pod's address
	AddressConflict Reason = "AddressConflict" // several have it
)
