package outlive

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/lab"
)

// formerEnv is a firsthop of a former version, for tests of an upgrade.
const formerEnv = "FIRSTHOP_TEST_FORMER"

// Applications hear nothing of another version of the runtime that takes over, and of the former one that comes back.
func TestClientsOutliveAnUpgrade(t *testing.T) {
	former := os.Getenv(formerEnv)
	if former == "" {
		t.Skip("needs " + formerEnv + ", a firsthop of a former version: make test-upgrade")
	}
	for name, init := range map[string]bool{"run alone": false, "init and run": true} {
		t.Run(name, func(t *testing.T) {
			n := newNodeOf(t, former, nil)
			list := n.follow(func(program) bool { return true }, "old")
			n.reach(list, "old")
			mark(list)
			for i, program := range []string{firsthop, former, firsthop} {
				n.end(unix.SIGTERM)
				n.program = program
				if init {
					n.init()
				}
				n.start()
				ip := fmt.Sprintf("10.96.2.%d", i+1) // what only this one has heard of
				n.put("services", service(fmt.Sprint("later-", i), ip, corev1.ServicePort{Name: "x", Protocol: corev1.ProtocolTCP, Port: 80}))
				lab.Await(t, "the runtime serves", func() bool { return strings.Contains(n.table(), ip+":80") })
				for _, f := range list { // each is asked some times by what serves now
					before := len(f.Past())
					if !within(func() bool { return f.silent || len(f.Past()) > before+2*inARow }) {
						t.Errorf("%s says no more: %s", f.name, tail(f.Past()))
					}
				}
				n.reach(list, "old")
			}
			n.endpoints("new")
			n.reach(list, "new")
			n.judge(list, nil)
		})
	}
}
