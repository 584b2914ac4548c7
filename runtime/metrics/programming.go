package metrics

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TriggerAnnotation says, on an EndpointSlice, when the Pod or Service changed that the slice's last change comes from.
const TriggerAnnotation = corev1.EndpointsLastChangeTriggerTime

// Trigger reads that time, zero where there is none that can be read.
func Trigger(annotations map[string]string) time.Time {
	at, err := time.Parse(time.RFC3339Nano, annotations[TriggerAnnotation])
	if err != nil {
		return time.Time{}
	}
	return at
}

// causes are the times of what caused the changes that wait, by Service. As with kube-proxy, causes from before
// the start don't count: nobody was here to write them; and neither do those of a Service one of whose slices goes: it may
// be going itself.
type causes struct {
	since  time.Time
	queued map[types.NamespacedName][]time.Time
}

// maxCauses bounds what waits while nothing can be written: then times say little anyway.
const maxCauses = 10_000

func newCauses(since time.Time) causes {
	return causes{since: since, queued: map[types.NamespacedName][]time.Time{}}
}

func (c *causes) note(service types.NamespacedName, cause time.Time, gone bool) {
	switch {
	case gone:
		delete(c.queued, service)
	case cause.After(c.since) && (len(c.queued) < maxCauses || c.queued[service] != nil) && len(c.queued[service]) < maxCauses/100:
		c.queued[service] = append(c.queued[service], cause)
	}
}

func (c *causes) take() map[types.NamespacedName][]time.Time {
	out := c.queued
	c.queued = map[types.NamespacedName][]time.Time{}
	return out
}

func (c *causes) putBack(caused map[types.NamespacedName][]time.Time) {
	for service, list := range caused {
		for _, at := range list {
			c.note(service, at, false)
		}
	}
}
