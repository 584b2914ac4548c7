package services

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Problem is something of an object that is ignored or wrong.
type Problem struct {
	Kind    string // of the object: "Service" or "EndpointSlice"
	Object  types.NamespacedName
	Port    string // of the Service, where one port is meant and has a name
	Reason  Reason
	Message string // what, and what becomes of it
}

// Reason is a Problem's kind in one word, as events have it.
type Reason string

// The reasons.
const (
	AddressReserved Reason = "AddressReserved" // of an API server or the API service
	BadAnnotation   Reason = "BadAnnotation"   // a value that says nothing
	BadAddress      Reason = "BadAddress"      // not an IP address, or one that can't be served
	BadPort         Reason = "BadPort"         // not a port number, or not a protocol
	BadSourceRange  Reason = "BadSourceRange"  // not a CIDR
	BadAffinity     Reason = "BadAffinity"     // a timeout outside of 1 to 86,400 s
	BadSlice        Reason = "BadSlice"        // an address type that is not IPv4 or IPv6
	Duplicate       Reason = "Duplicate"       // a port or frontend twice in one Service
	FrontendTaken   Reason = "FrontendTaken"   // another Service has it
	LeftToHost      Reason = "LeftToHost"      // a cluster IP is an address of the host's own interfaces
	NodeAddress     Reason = "NodeAddress"     // an external or load balancer IP is an address of this node
	NoEndpoints     Reason = "NoEndpoints"     // of the API service only
	NoHealthPort    Reason = "NoHealthPort"    // a Service that needs a healthCheckNodePort has none
	PolicyIgnored   Reason = "PolicyIgnored"   // internalTrafficPolicy Local would cut off the API service
)

// problems collects what is wrong with objects.
type problems struct{ list []Problem }

func (p *problems) add(kind string, obj metav1.Object, reason Reason, format string, args ...any) {
	p.list = append(p.list, Problem{
		Kind:    kind,
		Object:  types.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()},
		Reason:  reason,
		Message: fmt.Sprintf(format, args...),
	})
}

const maxQuoted = 60 // bytes of a foreign value that a message quotes

// quote shows a foreign value, which may be of any length.
func quote(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return fmt.Sprintf("%q", s)
}
