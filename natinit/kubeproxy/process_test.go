package kubeproxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProcess(t *testing.T) {
	t.Run("runs without rules yet", func(t *testing.T) {
		n := newNode(t)
		pid := n.startProcess(n.lab, "kube-proxy").Process.Pid
		p := n.detect()
		if p.State != Running || p.Rules != No || len(p.Processes) != 1 || p.Processes[0].PID != pid || p.Processes[0].Embedded {
			t.Errorf("got %+v", p)
		}
	})
	t.Run("runs with rules, then ends and leaves them", func(t *testing.T) {
		n := newNode(t)
		n.run(ip4Rules, "iptables-nft-restore")
		process := n.startProcess(n.lab, "kube-proxy")
		p := n.detect()
		if p.State != Running || p.Rules != Yes {
			t.Errorf("got %s", p)
		}
		checkServed(t, p, "10.96.0.1:443 yes")
		process.becomeZombie(t)
		p = n.detect()
		if p.State != LeftOver {
			t.Errorf("when it is a zombie: %s", p)
		}
		process.end()
		p = n.detect()
		if p.State != LeftOver {
			t.Errorf("when it is gone: %s", p)
		}
		checkServed(t, p, "10.96.0.1:443 yes")
	})
	t.Run("runs in another network namespace", func(t *testing.T) {
		n := newNode(t)
		n.startProcess(newNode(t).lab, "kube-proxy")
		p := n.detect()
		if p.State != Absent || len(p.Processes) != 0 {
			t.Errorf("got %s", p)
		}
		if detail := find(t, p, SourceProcess).Detail; !strings.Contains(detail, "other network namespaces: kube-proxy, pid") {
			t.Errorf("does not name it: %s", detail)
		}
	})
}

func TestEmbedded(t *testing.T) {
	for _, test := range []struct {
		name    string
		comm    string
		args    []string
		config  string // k3s's configuration file
		rules   bool
		healthz bool
		want    State
	}{
		{"k3s without rules has no kube-proxy", "k3s-server", nil, "", false, false, Absent},
		{"k3s with rules and the health port has", "k3s-server", nil, "", true, true, Running},
		{"k3s with rules and no health port may have", "k3s-agent", nil, "", true, false, Unclear},
		{"k3s with the flag has not", "k3s-server", []string{"server", "--disable-kube-proxy"}, "", true, true, LeftOver},
		{"k3s with the line in its configuration has not", "k3s-server", nil, "token: x\ndisable-kube-proxy: true # firsthop\n", true, true, LeftOver},
		{"k3s with the line set to false has", "k3s-server", nil, "disable-kube-proxy: false\n", true, true, Running},
		{"microk8s with rules and the health port has", "kubelite", nil, "", true, true, Running},
		{"hyperkube as kube-proxy is kube-proxy", "hyperkube", []string{"kube-proxy"}, "", false, false, Running},
		{"hyperkube as the kubelet is not", "hyperkube", []string{"kubelet"}, "", true, true, LeftOver},
		{"an unrelated process is not", "kube-proxy-x", nil, "", true, true, LeftOver},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			d := newDetector(Config{Root: t.TempDir()})
			if test.config != "" {
				mustWrite(t, filepath.Join(d.root, "etc/rancher/k3s/config.yaml"), test.config)
			}
			if test.rules {
				n.run(ip4Rules, "iptables-nft-restore")
			}
			if test.healthz {
				n.serveHealthz("HTTP/1.1 200 OK\r\n\r\n{}")
			}
			if test.comm == "hyperkube" {
				// Its first argument says what it is, so it can't be the shell's.
				n.startHyperkube(test.args[0])
			} else {
				n.startProcess(n.lab, test.comm, test.args...)
			}
			if p := n.detectWith(d); p.State != test.want {
				t.Errorf("state %q, want %q\n%s", p.State, test.want, p)
			}
		})
	}
}

// startHyperkube starts a process whose arguments are hyperkube's: the shell
// reads a script of that name in its directory.
func (n node) startHyperkube(part string) {
	n.Helper()
	dir := n.TempDir()
	mustWrite(n.T, filepath.Join(dir, part), "echo; read line\n")
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hyperkube"), shell, 0o755); err != nil {
		n.Fatal(err)
	}
	cmd := n.lab.Command(n.Context(), filepath.Join(dir, "hyperkube"), part)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(process{Cmd: cmd, stdin: stdin}.end)
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		n.Fatal(err)
	}
}

func TestHealthz(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer string // "" for a port that takes connections and says nothing, "-" for none
		want   Answer
		detail string
	}{
		{"healthy", "HTTP/1.1 200 OK\r\n\r\n{}", Yes, "127.0.0.1:10256 answers 200 OK"},
		{"unhealthy answers too", "HTTP/1.1 503 Service Unavailable\r\n\r\n", Yes, "answers 503"},
		{"something else", "SSH-2.0-OpenSSH\r\n", Unknown, "no HTTP answer"},
		{"silent", "", Unknown, "timeout"},
		{"nothing there", "-", No, "nothing listens"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.startProcess(n.lab, "kube-proxy")
			if test.answer != "-" {
				n.serveHealthz(test.answer)
			}
			start := time.Now()
			p := n.detect()
			if took := time.Since(start); took > 5*healthTimeout {
				t.Errorf("took %v", took)
			}
			if e := find(t, p, SourceHealthz); e.Found != test.want || !strings.Contains(e.Detail, test.detail) {
				t.Errorf("got %s: %s; want %s: %s", e.Found, e.Detail, test.want, test.detail)
			}
			if p.State != Running {
				t.Errorf("state %q: the port decides nothing for a kube-proxy that runs", p.State)
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

func TestAContainersProcessesProveNothing(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct {
		name  string
		procs map[string]string // pid -> name
		want  State
	}{
		{"only the container's own", map[string]string{"1": "firsthop", "7": "sh"}, Unclear},
		{"the kernel's threads too", map[string]string{"1": "anything", "2": "kthreadd"}, Absent},
		{"a node that is a container", map[string]string{"1": "systemd"}, Absent},
		{"a node without systemd", map[string]string{"1": "tini", "30": "kubelet"}, Absent},
	} {
		t.Run(test.name, func(t *testing.T) {
			proc := t.TempDir()
			for pid, comm := range test.procs {
				mustWrite(t, filepath.Join(proc, pid, "comm"), comm+"\n")
			}
			d := newDetector(Config{Proc: proc})
			if p := n.detectWith(d); p.State != test.want {
				t.Errorf("state %q, want %q\n%s", p.State, test.want, p)
			}
		})
	}
	t.Run("no /proc", func(t *testing.T) {
		d := newDetector(Config{Proc: "/nonexistent"})
		if p := n.detectWith(d); p.State != Unclear {
			t.Errorf("got %s", p)
		}
	})
}
