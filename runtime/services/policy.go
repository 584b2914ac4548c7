package services

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf/nat"
)

// policy is what of a Service is the same for all its ports and families.
type policy struct {
	internalLocal bool
	externalLocal bool // as far as there is an external frontend
	affinity      time.Duration
	healthPort    uint16
	neverEmpty    bool

	nodePortRanges bool // source ranges are for node ports too
}

// NodePortRangesAnnotation on a Service says, with "true", that its source ranges are for its node ports too: they then
// allow no other clients outside the cluster.
const NodePortRangesAnnotation = "firsthop.io/node-port-source-ranges"

func (c *compiler) readNodePortRanges() bool {
	value := c.svc.Annotations[NodePortRangesAnnotation]
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true":
		return true
	case "", "false":
		return false
	}
	c.note(BadAnnotation, "the annotation %s is ignored: %s is neither true nor false; source ranges do not limit its node ports",
		NodePortRangesAnnotation, quote(value))
	return false
}

func (c *compiler) readPolicy() policy {
	spec := &c.svc.Spec
	p := policy{
		internalLocal: spec.InternalTrafficPolicy != nil && *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		externalLocal: spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && external(spec),
		neverEmpty:    c.svc.Namespace == APIService.Namespace && c.svc.Name == APIService.Name,

		nodePortRanges: c.readNodePortRanges(),
	}
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		p.affinity = c.readAffinity()
	}
	if spec.Type != corev1.ServiceTypeLoadBalancer || !p.externalLocal {
		return p
	}
	switch n, ok := port(spec.HealthCheckNodePort); {
	case ok:
		p.healthPort = n
	case spec.HealthCheckNodePort == 0:
		c.note(NoHealthPort, "it has no healthCheckNodePort: its load balancer can't learn which nodes have endpoints")
	default:
		c.note(BadPort, "the healthCheckNodePort is ignored: %d is not a port number", spec.HealthCheckNodePort)
	}
	return p
}

// external reports whether a Service is of a type that externalTrafficPolicy is
// about; whether a port has an external frontend is another question.
func external(spec *corev1.ServiceSpec) bool {
	switch spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		return true
	}
	return len(spec.ExternalIPs) > 0
}

const defaultAffinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second

func (c *compiler) readAffinity() time.Duration {
	conf := c.svc.Spec.SessionAffinityConfig
	if conf == nil || conf.ClientIP == nil || conf.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	given := time.Duration(*conf.ClientIP.TimeoutSeconds) * time.Second
	used := given
	switch {
	case given <= 0:
		used = defaultAffinity
	case given > nat.MaxAffinity:
		used = nat.MaxAffinity
	default:
		return given
	}
	c.note(BadAffinity, "clients keep their backend for %v: %v is not between 1s and %v", used, given, nat.MaxAffinity)
	return used
}
