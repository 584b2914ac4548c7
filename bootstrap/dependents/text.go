package dependents

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

var (
	urls      = regexp.MustCompile(`(?i)https?://(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]{1,5})?`) // without a path
	addresses = regexp.MustCompile(`(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z][0-9A-Za-z.-]*):[0-9]{1,5}\b`)
	// A static pod says by these where its client finds the API server: in YAML, name and value are two lines.
	serviceHost = regexp.MustCompile(`KUBERNETES_SERVICE_HOST["']?\s*[:=]?\s*(?:["']?value["']?:\s*)?["']?(\[?[0-9A-Fa-f:.]*[0-9A-Fa-f]\]?|[0-9A-Za-z][0-9A-Za-z.-]*)`)
)

// leadsTo gives the Service address of a server's URL, or of an address as kubeconfigs may have one.
func (s *scan) leadsTo(server string) (netip.AddrPort, bool) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return netip.AddrPort{}, false
	}
	port := u.Port()
	switch {
	case port != "":
	case strings.EqualFold(u.Scheme, "http"):
		port = "80"
	default:
		port = "443"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return s.service(u.Hostname(), uint16(n))
}

// texts looks at the files that are no kubeconfigs.
func (s *scan) texts() {
	for _, path := range s.kubeProxyConfigs() {
		s.kubeconfig(path)
	}
	patterns := textPatterns()
	for _, dir := range s.pods {
		patterns = append(patterns, dir+"/*", dir) // staticPodPath may be one file
	}
	for _, c := range s.commands {
		patterns = append(patterns, c.Path)
	}
	for _, pattern := range patterns {
		for _, path := range s.fs.Glob(pattern) {
			if b, ok := s.read(path); ok {
				s.text(path, b)
			}
		}
	}
}

// text finds the Service addresses that a text names.
func (s *scan) text(path string, b []byte) {
	text := withoutComments(string(b))
	seen := map[string]bool{}
	add := func(server string, service netip.AddrPort, is bool) {
		if is && !seen[server] {
			seen[server] = true
			s.found = append(s.found, s.dependent(path, server, service))
		}
	}
	for _, at := range urls.FindAllString(text, -1) {
		service, is := s.leadsTo(at)
		add(at, service, is)
	}
	for _, at := range addresses.FindAllString(urls.ReplaceAllString(text, " "), -1) {
		host, port, err := net.SplitHostPort(at)
		n, failed := strconv.ParseUint(port, 10, 16)
		if err == nil && failed == nil {
			service, is := s.service(host, uint16(n))
			add(at, service, is)
		}
	}
	for _, m := range serviceHost.FindAllStringSubmatch(text, -1) {
		for _, a := range s.cfg.Services { // the port stands elsewhere
			service, is := s.service(m[1], a.Port())
			add(m[1], service, is)
		}
	}
}

// withoutComments drops lines that begin with # or ;.
func withoutComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if t := strings.TrimSpace(line); !strings.HasPrefix(t, "#") && !strings.HasPrefix(t, ";") {
			b.WriteString(line)
		}
	}
	return b.String()
}
