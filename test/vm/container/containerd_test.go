package container

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runtimeDefault is where containerd's own seccomp profile for a container is kept, for those that runc runs after this.
func runtimeDefault(container string) string {
	return workDir + "/runtime-default-" + container + ".json"
}

// TestImageInContainerd: it is imported as a node's would be, and a container is made of it, whose seccomp profile
// is then that of RuntimeDefault for all other tests.
func TestImageInContainerd(t *testing.T) {
	n := newNode(t)
	ctr := n.startContainerd()
	ctr("images", "import", "--snapshotter", "native", filesDir+"/firsthop-oci.tar")
	pinned := strings.TrimSpace(string(read(t, filesDir, "digest")))
	name, digest, _ := strings.Cut(pinned, "@")
	if list := ctr("images", "list"); !strings.Contains(list, name+" ") || !strings.Contains(list, digest) {
		t.Errorf("no %s among the images:\n%s", pinned, list)
	}
	n.keepProfile(ctr, name, addressed(t).InitContainers[0])
	n.keepProfile(ctr, name, runtimeManifest(t).Containers[0])
}

// keepProfile has containerd make a container, and keeps the profile that it gives one with these capabilities.
func (n *node) keepProfile(ctr func(args ...string) string, image string, c container) {
	n.Helper()
	create := []string{"containers", "create", "--snapshotter", "native", "--seccomp", "--net-host"}
	if help, _ := n.command("ctr", "containers", "create", "--help"); strings.Contains(help, "--cap-add") {
		for _, added := range c.SecurityContext.Capabilities.Add {
			create = append(create, "--cap-add", "CAP_"+added)
		}
	} else { // before 1.5 it takes all of them or none: the profile goes by the capabilities
		create = append(create, "--privileged")
	}
	ctr(append(create, image, "profile-"+c.Name)...)
	var info struct {
		Spec struct {
			Process struct {
				Args []string `json:"args"`
				User struct {
					UID int `json:"uid"`
				} `json:"user"`
			} `json:"process"`
			Linux struct {
				Seccomp json.RawMessage `json:"seccomp"`
			} `json:"linux"`
		}
	}
	n.must(json.Unmarshal([]byte(ctr("containers", "info", "profile-"+c.Name)), &info))
	if p := info.Spec.Process; len(p.Args) != 1 || p.Args[0] != "/usr/bin/firsthop" || p.User.UID != 65532 {
		n.Errorf("containerd would run %+v", p)
	}
	if len(info.Spec.Linux.Seccomp) == 0 {
		n.Fatal("containerd has no default profile")
	}
	n.must(os.WriteFile(runtimeDefault(c.Name), info.Spec.Linux.Seccomp, 0o644))
}

// startContainerd starts one of its own, until the end of the test, and returns its client.
func (n *node) startContainerd() func(args ...string) string {
	n.Helper()
	dir := n.TempDir()
	socket := filepath.Join(dir, "socket")
	log, err := os.Create(filepath.Join(dir, "log"))
	n.must(err)
	config := filepath.Join(dir, "config.toml")
	n.must(os.WriteFile(config, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o644))
	cmd := exec.Command("containerd", "--config", config, "--root", dir+"/root", "--state", dir+"/state", "--address", socket)
	cmd.Stdout, cmd.Stderr = log, log
	n.must(cmd.Start())
	n.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if n.Failed() {
			text, _ := os.ReadFile(log.Name())
			n.Logf("containerd:\n%s", text)
		}
		log.Close()
	})
	ctr := func(args ...string) string {
		n.Helper()
		return n.done("ctr", append([]string{"--address", socket}, args...)...)
	}
	deadline := time.After(time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, code := n.command("ctr", "--address", socket, "version"); code == 0 {
			return ctr
		}
		select {
		case <-deadline:
			n.Fatal("containerd does not answer")
		case <-tick.C:
		}
	}
}
