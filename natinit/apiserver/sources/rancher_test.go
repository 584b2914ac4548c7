package sources

import (
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestRancherSourceReadsConfigurations(t *testing.T) {
	const conf, unit = "/etc/rancher/k3s/config.yaml", "/etc/systemd/system/k3s.service"
	server := func(svc, ep string, f files) sourceCase {
		f["/var/lib/rancher/k3s/server/token"] = "t"
		c := sourceCase{f, apiserver.SourceK3s, []string{svc}, nil, nil, nil, nil}
		if ep != "" {
			c.endpoints = []string{ep}
		}
		return c
	}
	runSourceCases(t, map[string]sourceCase{
		"OpenRC": server("10.45.0.1:443", "192.0.2.11:6443", files{"/etc/init.d/k3s": "command=\"/usr/local/bin/k3s\"\ncommand_args=\"server \\\n\t'--service-cidr' \\\n\t'10.45.0.0/16' \\\n\t'--advertise-address' \\\n\t'192.0.2.11' \\\n    >>/var/log/k3s.log 2>&1\"\n"}),
		"OpenRC's agent has its URL in k3s-agent.env": {files{"/etc/init.d/k3s-agent": "command=/k3s\ncommand_args=\"agent >>/l 2>&1\"\nset -o allexport\nif [ -f /etc/rancher/k3s/k3s-agent.env ]; then . /etc/rancher/k3s/k3s-agent.env; fi\n", "/etc/rancher/k3s/k3s-agent.env": "K3S_URL='https://192.0.2.11:6443'\n"},
			apiserver.SourceK3s, nil, []string{"192.0.2.11:6443"}, nil, nil, nil},
		"a port in quotes":                   server("10.43.0.1:443", "192.0.2.11:7443", files{conf: "node-ip: 192.0.2.11\nhttps-listen-port: \"7443\"\n"}),
		"the port that is advertised counts": server("10.43.0.1:443", "192.0.2.11:8443", files{conf: "node-ip: 192.0.2.11\nhttps-listen-port: 7443\nadvertise-port: 8443\n"}),
		"only the first node address is advertised, and an external one before it": server("10.43.0.1:443", "203.0.113.5:6443", files{conf: "node-ip: [10.0.0.1, 'fd00::1']\nnode-external-ip: 203.0.113.5,203.0.113.6\n"}),
		"an argument of kube-apiserver itself goes first":                          server("10.99.0.1:443", "10.0.0.8:6443", files{conf: "service-cidr: 10.45.0.0/16\nnode-ip: 10.0.0.1\nkube-apiserver-arg:\n- service-cluster-ip-range=10.99.0.0/16\n- advertise-address=10.0.0.8\n"}),
		"an IPv6 node has the default of IPv6":                                     server("[fd00:43::1]:443", "[2001:db8::1]:6443", files{conf: "node-ip: '2001:db8::1'\n"}),
		"a server without an API server":                                           server("10.43.0.1:443", "", files{conf: "node-ip: 10.0.0.1\ndisable-apiserver: true\n"}),
		"a service of another name":                                                server("10.45.0.1:443", "10.0.0.1:6443", files{"/etc/systemd/system/k3s-prod.service": "[Service]\nExecStart=/usr/local/bin/k3s server '--node-ip=10.0.0.1' --service-cidr \"10.45.0.0/16\"\n"}),
		"--config elsewhere":                                                       server("10.45.0.1:443", "10.0.0.1:6443", files{unit: "[Service]\nExecStart=/usr/local/bin/k3s server -c /srv/k3s.yaml\n", "/srv/k3s.yaml": "node-ip: 10.0.0.1\n", "/srv/k3s.yaml.d/x.yml": "service-cidr: 10.45.0.0/16\n", conf: "service-cidr: 10.1.0.0/16\n"}),
		"a short flag for the directory":                                           {files{unit: "[Service]\nExecStart=/usr/local/bin/k3s server -d /srv/k3s --service-cidr=10.45.0.0/16\n", "/srv/k3s/agent/kubelet.kubeconfig": apitest.Kubeconfig("https://10.0.0.4:6443")}, apiserver.SourceK3s, []string{"10.45.0.1:443"}, []string{"10.0.0.4:6443"}, nil, []string{"/srv/k3s/agent/kubelet.kubeconfig"}, nil},
		"a server before its first start":                                          {files{unit: "[Service]\nExecStart=/usr/local/bin/k3s server --node-ip=10.0.0.1 --service-cidr=10.45.0.0/16\n"}, apiserver.SourceK3s, []string{"10.45.0.1:443"}, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"an agent that once was a server":                                          {files{unit: "[Service]\nExecStart=/usr/local/bin/k3s agent --server=https://10.0.0.1:6443\n", "/var/lib/rancher/k3s/server/token": "t"}, apiserver.SourceK3s, nil, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"an environment file that a unit names": {files{"/usr/lib/systemd/system/k3s-agent.service": "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/sysconfig/%N\nExecStart=/usr/bin/k3s agent\n", "/etc/sysconfig/k3s-agent": "K3S_URL=https://k3s.example:443\n"},
			apiserver.SourceK3s, nil, []string{"k3s.example:443"}, nil, nil, nil},
		"RKE2: the port of the supervisor, units below /usr/local, an environment file": {
			files{"/usr/local/lib/systemd/system/rke2-agent.service": "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/usr/local/lib/systemd/system/%N.env\nExecStart=/usr/local/bin/rke2 agent\n", "/usr/local/lib/systemd/system/rke2-agent.env": "HOME=/root\nRKE2_URL=https://10.0.0.1:9345\n"},
			apiserver.SourceRKE2, nil, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"RKE2, a server before its first start": {
			files{"/usr/local/lib/systemd/system/rke2-server.service": "[Service]\nExecStart=/usr/local/bin/rke2 server\n", "/etc/rancher/rke2/config.yaml": "node-ip: 10.0.0.1\n", "/etc/rancher/rke2/config.yaml.d/50-rancher.yaml": `{"service-cidr": "10.53.0.0/16", "server": "https://10.0.0.2:9345"}`},
			apiserver.SourceRKE2, []string{"10.53.0.1:443"}, []string{"10.0.0.2:6443", "10.0.0.1:6443"}, nil, nil, nil},
	})
}
