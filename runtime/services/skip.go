package services

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// LabelProxyName on a Service or EndpointSlice leaves it to another service
// proxy, whatever its value (KEP-2447, k8s.io/kubernetes/pkg/proxy/apis).
const LabelProxyName = "service.kubernetes.io/service-proxy-name"

// ignoredSlice reports whether a slice is not for us.
func ignoredSlice(s *discoveryv1.EndpointSlice) bool {
	_, other := s.Labels[LabelProxyName]
	_, headless := s.Labels[corev1.IsHeadlessService]
	return other || headless
}

// ignoredService reports whether a Service is not for us: one of another proxy,
// an alias of a DNS name, or one with no address of its own, be it by choice or
// not yet.
func ignoredService(svc *corev1.Service) bool {
	_, other := svc.Labels[LabelProxyName]
	return other || svc.Spec.Type == corev1.ServiceTypeExternalName ||
		svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone
}
