package bpf

// Features are the optional abilities of the running kernel that the
// programs and their attachment make use of. With the zero value everything
// works on the floor (Linux 5.3, RHEL 8.2), by the lower rung of each ladder. Package kernel fills it from probes.
type Features struct {
	Link        bool `json:"link"`         // bpf_link for cgroups, Linux 5.7; else PROG_ATTACH with ALLOW_MULTI
	Batch       bool `json:"batch"`        // batch operations on hash maps, Linux 5.6; else one by one
	NetnsCookie bool `json:"netns_cookie"` // bpf_get_netns_cookie in sock_addr programs, Linux 5.7; else no host scope
	GetPeername bool `json:"getpeername"`  // getpeername hooks, Linux 5.8; else getpeername says the backend
	ContextSock bool `json:"context_sock"` // the socket of sock_addr programs' context, Linux 5.3 and RHEL 8.3; else bound addresses and devices are not seen
	SetRetval   bool `json:"set_retval"`   // bpf_set_retval in these programs, Linux 6.1 (the helper is of 5.18); else a refused connect is EPERM
}
