package mounts

import (
	"testing"
)

func TestKubeletMark(t *testing.T) {
	const pods = "/var/lib/kubelet/pods/0f3b2c64-9a43-4a5b-8a3e-1f6d1f6a7b11"
	for _, row := range []struct {
		is   string
		m    Mount
		want bool
	}{
		{"a termination log", Mount{Root: "/x", Point: "/dev/termination-log"}, true},
		{"hosts from the pods directory", Mount{Root: pods + "/etc-hosts", Point: "/etc/hosts"}, true},
		{"a log at another path", Mount{Root: pods + "/containers/c/1a", Point: "/var/log/end"}, true},
		{"a kubelet elsewhere", Mount{Root: "/data" + pods + "/volumes/kubernetes.io~empty-dir/v", Point: "/v"}, true},
		{"a volume on the node itself", Mount{Root: pods + "/volumes/a", Point: pods + "/volumes/b"}, false},
		{"another directory called pods", Mount{Root: "/srv/pods/a/containers/x", Point: "/x"}, false},
		{"an ordinary mount", Mount{Root: "/", Point: "/"}, false},
	} {
		if got := kubeletMark([]Mount{row.m}) != ""; got != row.want {
			t.Errorf("%s: %v", row.is, got)
		}
	}
}

func TestHasRoot(t *testing.T) {
	own := []Mount{{ID: 9, Point: "/", Dev: "0:57", Root: "/"}}
	bound := []Mount{{ID: 9, Point: "/", Dev: "8:1", Root: "/snapshots/2/fs"}}
	for _, row := range []struct {
		is     string
		own    []Mount
		theirs Mount
		want   bool
	}{
		{"the same overlay", own, Mount{Dev: "0:57", Root: "/", Point: "/run/c/rootfs"}, true},
		{"another overlay", own, Mount{Dev: "0:58", Root: "/", Point: "/"}, false},
		{"the same directory of a disk", bound, Mount{Dev: "8:1", Root: "/snapshots/2/fs", Point: "/run/c/rootfs"}, true},
		{"another directory of the same disk", bound, Mount{Dev: "8:1", Root: "/snapshots/1/fs", Point: "/"}, false},
		{"no root of our own", nil, Mount{Dev: "8:1", Root: "/", Point: "/"}, false},
	} {
		if got := hasRoot(row.own, []Mount{row.theirs}); got != row.want {
			t.Errorf("%s: %v", row.is, got)
		}
	}
}
