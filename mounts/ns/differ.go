package ns

import "golang.org/x/sys/unix"

// Same compares the namespaces that two files are of, as /proc/1/ns/net. known: both could be looked at. A process that
// may not look at one gets an error from Stat; on Debian's 5.10, Stat describes a directory of /proc.
func Same(a, b string) (same, known bool) {
	var one, other unix.Stat_t
	if unix.Stat(a, &one) != nil || unix.Stat(b, &other) != nil || one.Dev != other.Dev { // all namespaces are on one
		return false, false
	}
	return one.Ino == other.Ino, true
}

// Differ reports whether two files are of two namespaces, as far as that is known.
func Differ(a, b string) bool {
	same, known := Same(a, b)
	return known && !same
}
