package mounts

import (
	"bytes"
	"slices"
	"strings"
)

// keepContainerMarks keeps our root and what a kubelet mounts into containers.
func keepContainerMarks(line []byte) bool {
	return pointIs(line, "/") ||
		bytes.Contains(line, []byte("/pods/")) ||
		bytes.Contains(line, []byte("/dev/termination-log "))
}

// keepNodeMarks keeps what judgeInit looks for.
func keepNodeMarks(own []Mount) func([]byte) bool {
	dev := []byte("none")
	if stack, _ := stackAt(own, "/", 0); len(stack) > 0 {
		dev = []byte(" " + stack[0].Dev + " ")
	}
	return func(line []byte) bool {
		return bytes.Contains(line, dev) || bytes.Contains(line, []byte("/pods/"))
	}
}

// kubeletMark finds what only a kubelet mounts into a container: the file for
// the termination message (every container has one, by default at
// /dev/termination-log, from PODS/UID/containers/…) and files or volumes from
// its pods directory (etc-hosts, volumes, also where the kubelet's own directory
// is not /var/lib/kubelet). The node itself has the pods directory's volumes as
// mount points, not as the source of a bind mount at a place outside of it.
func kubeletMark(mounts []Mount) string {
	for _, m := range mounts {
		if m.Point == "/dev/termination-log" {
			return m.Point
		}
		if inPodsDir(m.Root) && !inPodsDir(m.Point) {
			return m.Point
		}
	}
	return ""
}

// inPodsDir reports whether a path goes through PODS/UID/{containers,etc-hosts,
// volumes,volume-subpaths,plugins}.
func inPodsDir(path string) bool {
	_, rest, ok := strings.Cut(path, "/pods/")
	if !ok {
		return false
	}
	uid, rest, _ := strings.Cut(rest, "/")
	kind, _, _ := strings.Cut(rest, "/")
	switch kind {
	case "containers", "etc-hosts", "volumes", "volume-subpaths", "plugins":
		return len(uid) >= 32 // a UUID, or the hash of a static pod
	}
	return false
}

// hasRoot finds our root file system, the same directory of the same superblock, in
// another mount table. Every container has an overlay superblock of its own; with
// a runtime that binds directories of one disk instead, the directory tells them
// apart.
func hasRoot(own, theirs []Mount) bool {
	stack, _ := stackAt(own, "/", 0)
	return len(stack) > 0 && slices.ContainsFunc(theirs, func(m Mount) bool { return m.Dev == stack[0].Dev && m.Root == stack[0].Root })
}
