package workloads

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/netns"
)

func TestIsOf(t *testing.T) {
	const uid = types.UID("1b2c3d4e-0000-4000-8000-123456789abc")
	proc := t.TempDir()
	r := New(Config{Namespaces: netns.Config{Proc: proc}})
	for i, tc := range []struct {
		cgroup string
		want   bool
	}{
		{"0::/kubepods/burstable/pod1b2c3d4e-0000-4000-8000-123456789abc/0123\n", true},
		{"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1b2c3d4e_0000_4000_8000_123456789abc.slice/cri-containerd-01.scope\n", true},
		{"11:memory:/kubepods/pod1b2c3d4e-0000-4000-8000-123456789abc/01\n0::/\n", true},
		{"0::/../../podffffffff-0000-4000-8000-123456789abc/0123\n", false},
		{"0::/system.slice/1b2c3d4e-0000-4000-8000-123456789abc.service\n", false},
		{"0::/user.slice/user-1000.slice/user@1000.service/pod1b2c3d4e-0000-4000-8000-123456789abc\n", false}, // a user names it so
		{"0::/kubepods/podffffffff-0000-4000-8000-123456789abc/01/pod1b2c3d4e-0000-4000-8000-123456789abc\n", false},
	} {
		must(t, os.MkdirAll(filepath.Join(proc, strconv.Itoa(i)), 0o755))
		must(t, os.WriteFile(filepath.Join(proc, strconv.Itoa(i), "cgroup"), []byte(tc.cgroup), 0o600))
		if got := r.isOf([]int{i, 999}, uid); got != tc.want || r.isOf([]int{i}, "") {
			t.Errorf("%q: %v", tc.cgroup, got)
		}
	}
}
