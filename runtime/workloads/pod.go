package workloads

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Annotation is what a pod says about translation at connect time: Off, On, or
// nothing, which means On. Informers must keep it (services.Stripper).
const (
	Annotation = "firsthop.io/connect-time"
	Off        = "off"
	On         = "on"
)

// pod is what is used of one.
type pod struct {
	name        types.NamespacedName
	uid         types.UID
	addr4       netip.Addr
	addr6       netip.Addr
	hostNetwork bool
	ending      bool   // its address may soon be another's
	annotation  string // in lower case, without blanks
	created     int64  // seconds
}

// podOf reads a pod. ok is false for one that has ended: its address may be another's.
func podOf(p *corev1.Pod) (out pod, ok bool) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return pod{}, false
	}
	out = pod{
		name: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, uid: p.UID,
		hostNetwork: p.Spec.HostNetwork, ending: p.DeletionTimestamp != nil,
		annotation: strings.ToLower(strings.TrimSpace(p.Annotations[Annotation])), created: p.CreationTimestamp.Unix(),
	}
	ips := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range ips {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			continue
		}
		if addr = addr.Unmap(); addr.Is4() && !out.addr4.IsValid() {
			out.addr4 = addr
		} else if addr.Is6() && !out.addr6.IsValid() {
			out.addr6 = addr
		}
	}
	return out, true
}

func (p *pod) off() bool { return p.annotation == Off }

// ownNamespace reports whether the pod has a network namespace of its own, and an address.
func (p *pod) ownNamespace() bool { return !p.hostNetwork && (p.addr4.IsValid() || p.addr6.IsValid()) }

func (p *pod) has(a netip.Addr) bool { return a.IsValid() && (a == p.addr4 || a == p.addr6) }

func (p *pod) problem(reason Reason, format string, args ...any) Problem {
	return Problem{Pod: p.name, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// inOrder sorts pods so that of two with the same address the later one has it.
func inOrder(pods map[types.NamespacedName]pod) []pod {
	return slices.SortedFunc(maps.Values(pods), func(a, b pod) int {
		if a.ending != b.ending {
			return map[bool]int{true: -1, false: 1}[a.ending]
		}
		return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name))
	})
}

// Problem is something that a pod asks for and doesn't get.
type Problem struct {
	Pod     types.NamespacedName
	Reason  Reason
	Message string // what, and what becomes of it
}

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
