package services

// Health is what a Service's healthCheckNodePort answers from: 200 where
// addresses on this node are ready, else 503. A terminating one counts for
// nothing, though it may still get traffic. A Service of two families usually has
// each of its pods in both, so a question is answered for the family that it came by.
type Health struct {
	Port       uint16
	Ready4     int // addresses on this node that are ready
	Ready6     int
	Has4, Has6 bool // families that the Service is of
}

// HealthOf finds a Service's Health in its Ports; not ok: nobody may ask for it.
func HealthOf(ports []Port) (h Health, ok bool) {
	for i := range ports {
		p := &ports[i]
		h.Port = p.HealthCheckNodePort
		if p.Key.IPv6 {
			h.Ready6, h.Has6 = p.LocalReady, true
		} else {
			h.Ready4, h.Has4 = p.LocalReady, true
		}
	}
	return h, h.Port != 0
}
