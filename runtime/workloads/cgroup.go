package workloads

import (
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/natinit/hostproc"
)

// isOf tells whether one of the processes is in a cgroup of the pod, which has
// the pod's uid in its name: /kubepods/burstable/pod<uid>, or by systemd
// kubepods-burstable-pod<uid with _>.slice (kubelet's cgroup manager).
func (r *Reconciler) isOf(pids []int, uid types.UID) bool {
	if uid == "" {
		return false
	}
	proc := r.cfg.Namespaces.Proc
	if proc == "" {
		proc = "/proc"
	}
	for _, pid := range pids {
		b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
		if err != nil {
			continue
		}
		if hostproc.PodOf(string(b)) == string(uid) {
			return true
		}
	}
	return false
}
