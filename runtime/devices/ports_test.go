package devices

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

func TestPortRange(t *testing.T) {
	for _, tc := range []struct {
		name, local, reserved string
		nodePorts             Ports
		want, err             string
	}{
		{"the kernel's defaults", "32768\t60999\n", "\n", DefaultNodePorts, "1024-29999", ""},
		{"reserved ports", "32768\t60999", "8080,9000-9999, 61000-65535", DefaultNodePorts, "10000-29999", ""},
		{"above all", "1024 60999", "", DefaultNodePorts, "61000-65535", ""},
		{"the lower one of equals", "21024 45535", "", DefaultNodePorts, "1024-21023", ""},
		{"between", "1024 20000", "50000-65535", Ports{30000, 32767}, "32768-49999", ""},
		{"ranges that overlap", "1024 40000", "1-50000,3", Ports{20000, 45000}, "50001-65535", ""},
		{"node ports above", "1024 50000", "", Ports{64000, 65535}, "50001-63999", ""},
		{"the least that is enough", "2048 65535", "", DefaultNodePorts, "1024-2047", ""},
		{"one less", "2047 65535", "", DefaultNodePorts, "", "leave 1023 at most; make ip_local_port_range smaller, such as 32768-60999"},
		{"none", "1024 65535", "", DefaultNodePorts, "", "net.ipv4.ip_local_port_range (1024-65535)"},
		{"no numbers", "many", "", DefaultNodePorts, "", `"many" is not two numbers`},
		{"the wrong way round", "60999 32768", "", DefaultNodePorts, "", "its end is below its start"},
		{"too large", "32768 70000", "", DefaultNodePorts, "", "value out of range"},
		{"reserved ports that can't be read", "32768 60999", "80-http", DefaultNodePorts, "", "net.ipv4.ip_local_reserved_ports"},
	} {
		proc := t.TempDir()
		for name, text := range map[string]string{localRange: tc.local, localReserved: tc.reserved} {
			path := filepath.Join(proc, "sys", name)
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, []byte(text), 0o644))
		}
		got, err := PortRange(proc, tc.nodePorts)
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.err)
		case tc.err == "" && (err != nil || got.String() != tc.want):
			t.Errorf("%s: %v, %v, want %s", tc.name, got, err, tc.want)
		case tc.err == "" && (got.Len() < minPorts || got.Len() != int(got.Last-got.First)+1):
			t.Errorf("%s: %d ports", tc.name, got.Len())
		}
	}
	if _, err := PortRange(t.TempDir(), DefaultNodePorts); !os.IsNotExist(err) && !strings.Contains(err.Error(), "net.ipv4.ip_local_port_range") {
		t.Error(err)
	}
}

func TestPortRangeOfANamespace(t *testing.T) {
	l := lab.New(t)
	must(t, l.Sysctl("net.ipv4.ip_local_port_range", "40000 50000"))
	must(t, l.Sysctl("net.ipv4.ip_local_reserved_ports", "1024-9999,50001-65535"))
	must(t, l.Do(func() error {
		got, err := PortRange("/proc/thread-self/root/proc", DefaultNodePorts)
		if want := (Ports{10000, 29999}); got != want {
			t.Errorf("%v, want %v", got, want)
		}
		return err
	}))
}
