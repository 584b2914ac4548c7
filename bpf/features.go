package bpf

// Features are the optional abilities of the running kernel that the
// programs and their attachment make use of. The zero value is the floor
// (Linux 5.3, RHEL 8.2): everything works with it, by the lower rung of each
// ladder. Package kernel fills it from probes.
type Features struct {
	Link        bool `json:"link"`         // bpf_link for cgroups, Linux 5.7; else PROG_ATTACH with ALLOW_MULTI
	Batch       bool `json:"batch"`        // batch operations on hash maps, Linux 5.6; else one by one
	NetnsCookie bool `json:"netns_cookie"` // bpf_get_netns_cookie in sock_addr programs, Linux 5.7; else no host scope
	GetPeername bool `json:"getpeername"`  // getpeername hooks, Linux 5.8; else getpeername says the backend
	SetRetval   bool `json:"set_retval"`   // bpf_set_retval in these programs, Linux 6.1 (the helper is of 5.18); else a refused connect is EPERM
}
