package container

import (
	"fmt"
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
)

const (
	vip      = "10.96.0.1:443"
	server   = "192.0.2.10:6443" // of testdata/units/apiserver.service
	greeting = "the stand-in API server"
	// web is a Service of package kube's API server, which a stand-in for kube-proxy serves too, with another greeting.
	web               = "10.96.9.1:80"
	kubeProxyGreeting = "the stand-in kube-proxy"
	// kubeletSaw is where the stand-in kubelet writes what came of its first connection.
	kubeletSaw = "/run/kubelet-saw"
)

// TestMain is also what the units and the visiting containers run.
func TestMain(m *testing.M) {
	ours, err := kube.Main(os.Args)
	switch os.Args[len(os.Args)-1] {
	case "stand-in-apiserver":
		err = kube.Greet(":6443", greeting)
	case "stand-in-kubelet":
		err = os.WriteFile(kubeletSaw, []byte(kube.Visit(vip)), 0o644)
	case "visit":
		fmt.Println(kube.Visit(os.Args[len(os.Args)-2]))
	case "kube-proxy":
		err = kube.Greet(web, kubeProxyGreeting)
	default:
		if !ours {
			os.Exit(m.Run())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
