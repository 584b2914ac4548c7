package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine is a script that makes a machine of its own of the lab and runs the lines of its argument there, as pid 1: with
// process, mount and cgroup namespaces, with the lab's cgroup as the true root, and without anything on disk that outlives
// it. traces lists what an uninstall must bring back.
const machine = `
set -eu
mount --make-rprivate /
for dir in /run /var/lib /opt /etc /usr/local; do mount -t tmpfs -o mode=0755 tmpfs "$dir"; done
echo 'ID=debian' >/etc/os-release
umount -R /sys/fs/cgroup
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
traces() {
	find /run /var /opt /etc /usr/local /sys/fs/bpf -printf '%p %M\n'
	cut -d' ' -f5 /proc/self/mountinfo | grep -v -e ^/run/netns -e ^/tmp # those of other tests come and go
}
eval "$1"
`

// onMachine runs lines of shell on a machine of its own.
func (n node) onMachine(lines string) (string, error) {
	cmd := n.Command(n.Context(), "unshare", "--cgroup", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", machine, "init", lines)
	cmd.Env = withEnv([]string{"PATH=" + filepath.Dir(firsthop) + ":" + os.Getenv("PATH"), varVIPs + "=" + vips, varServer + "=" + servers})
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestInitOnANodeOfItsOwn runs firsthop as on a real node, with no flag that says where anything is: it mounts the bpffs, finds
// the true root, and says what a reboot takes where nothing starts services.
func TestInitOnANodeOfItsOwn(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	before := n.tree("/run/firsthop")
	out, err := n.onMachine(`
		traces >/tmp/` + n.Name + `/before
		firsthop check
		firsthop init --dry-run
		traces >/tmp/` + n.Name + `/dry
		firsthop init
		firsthop init
		firsthop status
		firsthop units
		` + client + ` tcp ` + vip4 + ` x
		stat -c '%n %a' /run/firsthop /run/firsthop/* /var/lib/firsthop /var/lib/firsthop/* /sys/fs/bpf /sys/fs/bpf/firsthop
		mount | grep /sys/fs/bpf
		firsthop uninstall --force --dry-run >/tmp/` + n.Name + `/announced
		firsthop uninstall --force >/tmp/` + n.Name + `/removed
		firsthop uninstall
		traces >/tmp/` + n.Name + `/after`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := result{T: t, stdout: out}
	r.says("this node is ready", "mount bpffs at /sys/fs/bpf", "/sys/fs/cgroup: ", "8 programs at /sys/fs/cgroup", "serving; proven",
		"Nothing survives a reboot", `"peer":"`+vip4, "/sys/fs/bpf 1700", "/sys/fs/bpf/firsthop 700", "/run/firsthop/lock 600",
		"nosuid,nodev,noexec", "nothing of firsthop's is here")
	files := map[string]string{}
	for _, name := range []string{"before", "dry", "after", "announced", "removed"} {
		data, err := os.ReadFile(filepath.Join(n.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(data)
	}
	for _, when := range []string{"dry", "after"} {
		if diff := cmp.Diff(strings.Split(files["before"], "\n"), strings.Split(files[when], "\n")); diff != "" {
			t.Errorf("%s (- before, + then):\n%s", when, diff)
		}
	}
	if diff := cmp.Diff(strings.ReplaceAll(files["announced"], "would remove", "removed"), files["removed"]); diff != "" {
		t.Errorf("removed is not what was announced:\n%s", diff)
	}
	if got := n.attached(); len(got) > 0 {
		t.Errorf("still attached: %q", got)
	}
	if diff := cmp.Diff(before, n.tree("/run/firsthop")); diff != "" {
		t.Errorf("the real node changed:\n%s", diff)
	}
}
