package boot

import (
	"fmt"
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
)

const (
	vip    = "10.96.0.1:443"
	server = "192.0.2.10:6443" // of testdata/units/apiserver.service
	// servers has those of apiservers-that-move.service too.
	servers = server + ",192.0.2.11:6443,192.0.2.12:6443"
	// greeting is how the stand-in is known: who else answered would not say it.
	greeting = "the stand-in API server"
	// kubeletSaw is where the stand-in kubelet writes what came of its first connection.
	kubeletSaw = "/run/kubelet-saw"
)

// TestMain is also what the units run.
func TestMain(m *testing.M) {
	ours, err := kube.Main(os.Args)
	switch os.Args[len(os.Args)-1] {
	case "stand-in-apiserver":
		err = kube.Greet(":6443", greeting)
	case "stand-in-kube-proxy":
		err = kube.Greet(vip, kubeProxyGreeting)
	case "stand-in-kubelet":
		err = os.WriteFile(kubeletSaw, []byte(kube.Visit(vip)), 0o644)
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
