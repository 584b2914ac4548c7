package kubeproxy

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestProcess(t *testing.T) {
	t.Run("runs without rules yet", func(t *testing.T) {
		n := newNode(t)
		pid := n.startedBy("kube-proxy", n.startProcess(n.lab, "kube-proxy")).Process.Pid
		p := n.detect()
		if p.State != Running || p.Rules != No || len(p.Processes) != 1 || p.Processes[0].PID != pid || p.Processes[0].Embedded {
			t.Errorf("got %+v", p)
		}
	})
	t.Run("runs with rules, then ends and leaves them", func(t *testing.T) {
		n := newNode(t)
		n.run(ip4Rules, "iptables-nft-restore")
		process := n.startedBy("kube-proxy", n.startProcess(n.lab, "kube-proxy"))
		p := n.detect()
		if p.State != Running || p.Rules != Yes {
			t.Errorf("got %s", p)
		}
		checkServed(t, p, "10.96.0.1:443 yes")
		process.becomeZombie(t)
		n.startedBy("kube-proxy", process)
		p = n.detect()
		if p.State != LeftOver {
			t.Errorf("when it is a zombie: %s", p)
		}
		checkServed(t, p, "10.96.0.1:443 yes")
	})
	t.Run("runs in another network namespace", func(t *testing.T) {
		n := newNode(t)
		n.startedBy("kube-proxy", n.startProcess(newNode(t).lab, "kube-proxy"))
		p := n.detect()
		if p.State != Absent || len(p.Processes) != 0 {
			t.Errorf("got %s", p)
		}
		if detail := find(t, p, SourceProcess).Detail; !strings.Contains(detail, "other network namespaces: kube-proxy, pid") {
			t.Errorf("does not name it: %s", detail)
		}
	})
}

// The kubelet's directories say which pods are kube-proxy's; what such a pod's container calls itself is of no matter.
func TestProcessInPod(t *testing.T) {
	const uid, cgroup = "1b2c3d4e-0000-4000-8000-123456789abc", "/kubepods.slice/kubepods-pod1b2c3d4e_0000_4000_8000_123456789abc.slice/cri-containerd-1.scope"
	for name, tc := range map[string]struct {
		dirs []string
		want State
	}{
		"kube-proxy's": {[]string{"/var/lib/kubelet/pods/" + uid + "/containers/kube-proxy", "/var/log/pods/kube-system_kube-proxy-x_" + uid}, Running},
		"a tenant's":   {[]string{"/var/lib/kubelet/pods/" + uid + "/containers/kube-proxy", "/var/log/pods/kube-system-x_kube-proxy-x_" + uid}, Absent},
		"another one":  {[]string{"/var/lib/kubelet/pods/" + uid + "/containers/agent", "/var/log/pods/kube-system_agent-x_" + uid}, Absent},
	} {
		t.Run(name, func(t *testing.T) {
			n, root := newNode(t), t.TempDir()
			for _, dir := range tc.dirs {
				mkdir(t, root+dir)
			}
			n.startedBy(cgroup, n.startProcess(n.lab, "proxy"))
			n.startedBy(cgroup, n.startProcess(n.lab, "pause"))
			if p := n.detectWith(NewDetector(Config{Root: root, Proc: n.proc})); p.State != tc.want || p.State == Running && len(p.Processes) != 1 {
				t.Errorf("got %s\n%+v", p, p.Processes)
			}
		})
	}
}

// Every user can call a process kube-proxy, in namespaces of his own too.
func TestProcessNamesProveNothing(t *testing.T) {
	n := newNode(t)
	for _, command := range [][]string{
		{"setpriv", "--reuid=65534", "--clear-groups"},
		{"setpriv", "--reuid=65534", "--clear-groups", "unshare", "-Ur"},
		{"setpriv", "--reuid=65534", "--clear-groups", "unshare", "-Urpmf", "--mount-proc"},
	} {
		cmd := n.lab.Command(t.Context(), command[0], append(command[1:], "sh", "-c", "printf kube-proxy >/proc/self/comm; echo; read line")...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdout.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		p := n.detectWith(NewDetector(Config{}))
		if p.State != Absent || len(p.Processes) > 0 || find(t, p, SourceProcess).Found != No {
			t.Errorf("%q: %s", command, p)
		}
		stdin.Close()
		_ = cmd.Wait()
	}
	// One of root's may have been started by hand: nothing is claimed of it.
	n.startProcess(n.lab, "kube-proxy")
	p := n.detectWith(NewDetector(Config{}))
	if p.State != Unclear || p.Running != Unknown || len(p.Processes) > 0 || !strings.Contains(find(t, p, SourceProcess).Detail, "was started by no unit or pod") {
		t.Errorf("root's: %s", p)
	}
}

func TestEmbedded(t *testing.T) {
	for _, test := range []struct {
		name    string
		unit    string
		args    []string
		config  string // k3s's configuration file, or its unit
		rules   bool
		healthz bool
		want    State
	}{
		{"k3s without rules has no kube-proxy", "k3s", nil, "", false, false, Absent},
		{"k3s with rules and the health port has", "k3s", nil, "", true, true, Running},
		{"k3s with rules and no health port may have", "k3s-agent", nil, "", true, false, Unclear},
		{"k3s with the flag has not", "k3s", []string{"server", "--disable-kube-proxy"}, "", true, true, LeftOver},
		{"k3s with the line in its configuration has not", "k3s", nil, "token: x\ndisable-kube-proxy: true # firsthop\n", true, true, LeftOver},
		{"k3s with the line set to false has", "k3s", nil, "disable-kube-proxy: false\n", true, true, Running},
		{"k3s with the flag in its unit has not: it hides its arguments", "k3s", nil, "unit: [Service]\nExecStart=/usr/local/bin/k3s server '--disable-kube-proxy'\n", true, true, LeftOver},
		{"k3s of another name has", "k3s-prod", nil, "unit: [Service]\nExecStart=/usr/local/bin/k3s server\n", true, true, Running},
		{"k3s of another name with the flag has not", "k3s-prod", nil, "unit: [Service]\nEnvironment=X=--disable-kube-proxy=true\nExecStart=/usr/local/bin/k3s server $X\n", true, true, LeftOver},
		{"k3s with a file of its own has what that says", "k3s", nil, "unit: [Service]\nExecStart=/usr/local/bin/k3s server -c /none.yaml\n", true, true, Running},
		{"a word in a value is not the flag", "k3s", nil, "node-label: [\"disable-kube-proxy: true\"]\n", true, true, Running},
		{"microk8s with rules and the health port has", "snap.microk8s.daemon-kubelite", nil, "", true, true, Running},
		{"an unrelated unit is not", "kube-proxy-x", nil, "", true, true, LeftOver},
		{"a user's unit of that name is not", "/user.slice/user-1000.slice/user@1000.service/k3s.service", nil, "", true, true, LeftOver},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			d := NewDetector(Config{Root: t.TempDir(), Proc: n.proc})
			if unit, ok := strings.CutPrefix(test.config, "unit: "); ok {
				mustWrite(t, filepath.Join(d.root, "etc/systemd/system", test.unit+".service"), unit)
			} else if test.config != "" {
				mustWrite(t, filepath.Join(d.root, "etc/rancher/k3s/config.yaml"), test.config)
			}
			if test.rules {
				n.run(ip4Rules, "iptables-nft-restore")
			}
			if test.healthz {
				n.serveHealthz("HTTP/1.1 200 OK\r\n\r\n{}")
			}
			n.startedBy(test.unit, n.startProcess(n.lab, "k3s-server", test.args...))
			if p := n.detectWith(d); p.State != test.want {
				t.Errorf("state %q, want %q\n%s", p.State, test.want, p)
			}
		})
	}
}

// serveHealthz listens as kube-proxy does and gives every connection an
// answer, or none.
func (n node) serveHealthz(answer string) {
	n.Helper()
	ln, err := n.lab.Listen("tcp", "127.0.0.1:10256")
	if err != nil {
		n.Fatal(err)
	}
	done := make(chan struct{})
	n.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if _, err := conn.Write([]byte(answer)); err != nil {
				n.Error(err)
			}
			_, _ = conn.Read(make([]byte, 1024))
			if answer == "" {
				_, _ = conn.Read(make([]byte, 1)) // until the other side gives up
			}
			conn.Close()
		}
	}()
}

func TestProcessOfAContainerProvesNothing(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct {
		name  string
		files []string
		want  State
	}{
		{"only the container's own", []string{"proc/1/stat=1 (systemd) S 0 1 1 0 -1 4194560", "proc/2/stat=2 (kthreadd) S 0 2 2 0 -1 4194560"}, Unclear},
		{"the kernel's threads too", []string{"proc/2/stat=2 (kthreadd) S 0 0 0 0 -1 2129984 0"}, Absent},
		{"a node that is a container", []string{"proc/1/stat=", "run/systemd/system/x="}, Absent},
		{"the same with OpenRC", []string{"proc/1/stat=", "run/openrc/x="}, Absent},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			for _, file := range test.files {
				name, content, _ := strings.Cut(file, "=")
				mustWrite(t, filepath.Join(root, name), content)
			}
			d := NewDetector(Config{Root: root, Proc: root + "/proc"})
			if p := n.detectWith(d); p.State != test.want {
				t.Errorf("state %q, want %q\n%s", p.State, test.want, p)
			}
		})
	}
	t.Run("no /proc", func(t *testing.T) {
		d := NewDetector(Config{Proc: "/nonexistent"})
		if p := n.detectWith(d); p.State != Unclear {
			t.Errorf("got %s", p)
		}
	})
}
