package apiserver

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// EntryError is a setting that cannot be used. The caller exits 64 with it
// and changes nothing.
type EntryError struct {
	// Variable is the flag or environment variable. The parsers fill in the
	// environment variable; who read a flag instead sets its name.
	Variable string
	// Entry is the offending entry as given, blanks trimmed.
	Entry string
	// Position counts entries from 1; 0 means that the entry stands for the
	// whole value, or that its position is not known any more.
	Position int
	// Reason says what is wrong and, where it helps, what to write instead.
	Reason string
}

func (e *EntryError) Error() string {
	if e.Position == 0 {
		return fmt.Sprintf("%s: %q: %s", e.Variable, Clip(e.Entry), e.Reason)
	}
	return fmt.Sprintf("%s: entry %d %q: %s", e.Variable, e.Position, Clip(e.Entry), e.Reason)
}

// Clip shortens what is quoted: an entry may be as long as an environment
// variable (128 KiB on Linux).
func Clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// FirstLine keeps an error from a parser on one line of the report.
func FirstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return Clip(s)
}

// ParseServices reads KUBERNETES_SERVICE_IPS_PORTS: comma-separated ip:port,
// IPv6 in brackets, both families mixed. Blanks around entries, one trailing
// comma and duplicates are accepted; the order is kept, IPv4-mapped IPv6
// becomes IPv4. An empty or blank value is treated as unset and gives
// (nil, nil). Every error is an *EntryError.
func ParseServices(s string) ([]netip.AddrPort, error) {
	return parseList(VarServices, s, MaxServices, func(entry string) (netip.AddrPort, string) {
		e, reason := parseAddress(entry, ServicePort)
		if reason == "" && !e.Resolved() {
			reason = "is a host name; a Service entry is an IP address and a port"
		}
		return e.Addr, reason
	})
}

// ParseEndpoints reads KUBERNETES_APISERVER_ENDPOINTS: as ParseServices, but
// an entry may also be a host name and a port. Names are not resolved here.
func ParseEndpoints(s string) ([]Endpoint, error) {
	return parseList(VarEndpoints, s, MaxEndpoints, ParseEndpoint)
}

// parseList splits s, parses each entry, and drops duplicates. parse returns
// a reason for refusing the entry, or "".
func parseList[T comparable](variable, s string, most int, parse func(string) (T, string)) ([]T, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	if strings.Trim(s, ", \t\r\n") == "" {
		return nil, &EntryError{Variable: variable, Entry: s, Reason: "has only separators, no address"}
	}
	entries := strings.Split(s, ",")
	if last := len(entries) - 1; strings.TrimSpace(entries[last]) == "" {
		entries = entries[:last]
	}
	if len(entries) > most {
		// Duplicates count: the limit is on what is worth reading.
		return nil, &EntryError{Variable: variable, Entry: strings.TrimSpace(entries[most]), Position: most + 1,
			Reason: fmt.Sprintf("is one of %d entries, at most %d are accepted", len(entries), most)}
	}
	out := make([]T, 0, len(entries))
	seen := make(map[T]struct{}, len(entries))
	for i, entry := range entries {
		entry = strings.TrimSpace(entry)
		v, reason := parse(entry)
		if reason != "" {
			return nil, &EntryError{Variable: variable, Entry: entry, Position: i + 1, Reason: reason}
		}
		if _, dup := seen[v]; !dup {
			seen[v] = struct{}{}
			out = append(out, v)
		}
	}
	return out, nil
}

// ParseEndpoint reads one ip:port, [ip]:port or name:port. It returns why
// the entry is refused, or "".
func ParseEndpoint(entry string) (Endpoint, string) { return parseAddress(entry, EndpointPort) }

// parseAddress is ParseEndpoint for addresses that usually have another port,
// which its hints suggest.
func parseAddress(entry string, usual uint16) (Endpoint, string) {
	if entry == "" {
		return Endpoint{}, "is empty"
	}
	host, port, reason := splitHostPort(entry, usual)
	if reason != "" {
		return Endpoint{}, reason
	}
	p, reason := parsePort(port)
	if reason != "" {
		return Endpoint{}, reason
	}
	bracketed := entry[0] == '['
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if bracketed {
			return Endpoint{}, "has no IPv6 address in the brackets"
		}
		name, reason := parseHostName(host)
		return Endpoint{Host: name, Addr: netip.AddrPortFrom(netip.Addr{}, p)}, reason
	}
	if bracketed && addr.Is4() {
		return Endpoint{}, fmt.Sprintf("has an IPv4 address in brackets; write %s:%d", addr, p)
	}
	if reason := RefuseAddr(addr); reason != "" {
		return Endpoint{}, reason
	}
	return Endpoint{Addr: netip.AddrPortFrom(addr.Unmap(), p)}, ""
}

// splitHostPort is stricter than net.SplitHostPort and says more.
func splitHostPort(entry string, usual uint16) (host, port, reason string) {
	if scheme, rest, ok := strings.Cut(entry, "://"); ok {
		rest, _, _ = strings.Cut(rest, "/")
		hint := rest
		if _, err := netip.ParseAddr(rest); err == nil && strings.Contains(rest, ":") {
			hint = inBrackets(rest, 443) // the port that such a URL leads to
		} else if hint != "" && !strings.Contains(hint[strings.LastIndexByte(hint, ']')+1:], ":") {
			hint += ":443"
		}
		return "", "", fmt.Sprintf("is a %s URL; write host and port only, like %s", Clip(scheme), Clip(cmp.Or(hint, fmt.Sprintf("10.0.0.1:%d", usual))))
	}
	if entry[0] == '[' {
		end := strings.IndexByte(entry, ']')
		if end < 0 {
			return "", "", "has no closing bracket"
		}
		host, rest := entry[1:end], entry[end+1:]
		if rest == "" {
			return "", "", fmt.Sprintf("has no port; write [%s]:%d", host, usual)
		}
		if rest[0] != ':' {
			return "", "", "has something other than :port after the bracket"
		}
		return host, rest[1:], ""
	}
	switch strings.Count(entry, ":") {
	case 0:
		return "", "", fmt.Sprintf("has no port; write %s:%d", Clip(entry), usual)
	case 1:
		host, port, _ = strings.Cut(entry, ":")
		if host == "" {
			return "", "", "has no address before the port"
		}
		return host, port, ""
	}
	if _, err := netip.ParseAddr(entry); err == nil {
		return "", "", "is an IPv6 address without brackets and port; write " + inBrackets(entry, usual)
	}
	if strings.ContainsAny(entry, "; \t\r\n|") {
		return "", "", "has more than one colon; separate addresses by commas"
	}
	return "", "", fmt.Sprintf("has more than one colon; write an IPv6 address in brackets: [fd00::1]:%d", usual)
}

// inBrackets is how an IPv6 address is written with its port. Where its end looks
// like one of the usual ports, that is what it was meant to be.
func inBrackets(entry string, usual uint16) string {
	for _, port := range []uint16{ServicePort, EndpointPort} {
		if host, ok := strings.CutSuffix(entry, fmt.Sprintf(":%d", port)); ok {
			if _, err := netip.ParseAddr(host); err == nil {
				return fmt.Sprintf("[%s]:%d", host, port)
			}
		}
	}
	return fmt.Sprintf("[%s]:%d", entry, usual)
}

func parsePort(s string) (uint16, string) {
	if s == "" {
		return 0, "has no port after the colon"
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, fmt.Sprintf("has the port %q, which is not a number", Clip(s))
		}
	}
	n, err := strconv.ParseUint(s, 10, 16)
	switch {
	case err != nil:
		return 0, fmt.Sprintf("has the port %s; the largest is 65535", Clip(s))
	case n == 0:
		return 0, "has the port 0"
	case s[0] == '0':
		return 0, fmt.Sprintf("has the port %q with a leading zero", Clip(s))
	}
	return uint16(n), ""
}

// RefuseAddr says why nothing can be sent to the address from anywhere on
// the node, or "". IPv4 link-local is accepted: some clouds serve the API there.
func RefuseAddr(a netip.Addr) string {
	if a.Zone() != "" {
		return "has a zone; an address that needs one means something else in every network namespace"
	}
	a = a.Unmap()
	switch {
	case a.IsUnspecified():
		return "is the unspecified address; write the address of one server"
	case a.IsMulticast():
		return "is a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	case a.Is6() && a.IsLinkLocalUnicast():
		return "is an IPv6 link-local address, which cannot be reached without a zone"
	}
	return ""
}

// parseHostName accepts DNS names (RFC 1123, plus the underscore that some
// internal zones use), in lower case. A name whose last label is a number
// would be a mistyped IPv4 address (WHATWG URL, "ends in a number").
func parseHostName(s string) (string, string) {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return "", "has a / in it; write host and port only"
	}
	if i := strings.IndexByte(s, '%'); i >= 0 {
		return "", "has a zone"
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if len(name) > 253 {
		return "", "is longer than a DNS name may be (253 characters)"
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if !validLabel(label) {
			return "", "is neither an IP address nor a host name"
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return "", "looks like an IPv4 address but is none"
	}
	return name, ""
}

func validLabel(l string) bool {
	if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for i := range len(l) {
		c := l[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
