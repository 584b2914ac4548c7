package hostproc

import (
	"cmp"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// cgroupOf takes the path that systemd and the kubelet manage out of /proc/PID/cgroup: that of the unified hierarchy, or
// of systemd's own where cgroup v1 is in use.
func cgroupOf(text string) string {
	var unified, pids, other string
	for line := range strings.Lines(text) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, group, ok := strings.Cut(rest, ":")
		switch {
		case !ok:
		case controllers == "name=systemd" && group != "/":
			return group
		case id == "0" && controllers == "":
			unified = group
		case strings.Contains(","+controllers+",", ",pids,"):
			pids = group // the kubelet's without systemd
		case group != "/" && other == "":
			other = group // the same, on a kernel without that controller
		}
	}
	if unified == "" || unified == "/" {
		return cmp.Or(pids, other, unified)
	}
	return unified
}

// components are those of a cgroup's path, seen from whichever cgroup namespace: what is above ours begins with "..".
func components(group string) []string {
	parts := strings.Split(strings.Trim(path.Clean(group), "/"), "/")
	for len(parts) > 0 && (parts[0] == ".." || parts[0] == "") {
		parts = parts[1:]
	}
	return parts
}

// unitOf names the service of a cgroup: the first component that is no slice. Users have services only below
// user@UID.service, containers below a scope.
func unitOf(group string) string {
	for _, c := range components(group) {
		if strings.HasSuffix(c, ".slice") {
			continue
		}
		unit, _ := strings.CutSuffix(c, ".service")
		if unit == c {
			return ""
		}
		return unit
	}
	return ""
}

// podName is a pod's cgroup: "pod<uid>", or by systemd "kubepods-burstable-pod<uid with _>.slice". The uid of a static pod
// is a hash.
var podName = regexp.MustCompile(`(?:^|-)pod([0-9a-f]{8}(?:[_-]?[0-9a-f]{4}){3}[_-]?[0-9a-f]{12})(?:\.slice)?$`)

// PodOf gives the uid of the pod that a process is in, from its /proc/PID/cgroup; "" if it is in none. What is below
// somebody's service, or below a pod, is that user's or pod's to name.
func PodOf(text string) string { return podOf(cgroupOf(text)) }

// podOf gives the uid of a cgroup's pod.
func podOf(group string) string {
	for _, c := range components(group) {
		if m := podName.FindStringSubmatch(c); m != nil {
			return strings.ReplaceAll(m[1], "_", "-")
		}
		if !strings.HasSuffix(c, ".slice") && c != "kubepods" && c != "burstable" && c != "besteffort" && c != "kubelet" {
			return ""
		}
	}
	return ""
}

// status is what counts of /proc/PID/status.
type status struct {
	name         string
	parent       int
	root         bool // real, effective, saved and file system user id are 0
	ownNamespace bool // it is in the process-id namespace of the /proc
	ended        bool // and waits for its parent
}

func parseStatus(text string) (s status, ok bool) {
	s.ownNamespace = true // a kernel before 4.1 does not say
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch key {
		case "Name":
			s.name = Printable(strings.TrimSpace(value))
		case "State":
			s.ended = len(fields) > 0 && (fields[0] == "Z" || fields[0] == "X")
		case "PPid":
			if len(fields) == 1 {
				s.parent, _ = strconv.Atoi(fields[0])
			}
		case "Uid":
			ok = len(fields) == 4
			s.root = ok
			for _, id := range fields {
				s.root = s.root && id == "0"
			}
		case "NSpid":
			s.ownNamespace = len(fields) == 1
		}
	}
	return s, ok
}

// Printable makes a name that somebody else chose fit for a terminal and a log.
func Printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

// flagsOf is the 9th field of /proc/PID/stat (fs/proc/array.c): the kernel's PF_ flags.
func flagsOf(stat string) uint64 {
	const flags = 9 - 3
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= flags {
		return 0
	}
	v, _ := strconv.ParseUint(fields[flags], 10, 64)
	return v
}

// userHZ is the unit of times in /proc/PID/stat: 100 on amd64 and arm64.
const userHZ = 100

// startTime is when a process started, in Unix seconds, from /proc/PID/stat and the line btime of /proc/stat.
func startTime(stat, boot string) (int64, bool) {
	const start = 22 - 3 // the 22nd field; the 3rd is the first behind the name, which may hold blanks
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= start {
		return 0, false
	}
	ticks, err := strconv.ParseInt(fields[start], 10, 64)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(boot) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			at, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return at + ticks/userHZ, err == nil
		}
	}
	return 0, false
}
