package nodeconf

import (
	"strings"
	"testing"
)

func TestRancherCommands(t *testing.T) {
	const etc = "/etc/rancher/k3s/config.yaml"
	unit := func(exec string, more ...string) string {
		return "[Service]\n" + strings.Join(more, "\n") + "\nExecStart=" + exec + "\n"
	}
	for sentence, tc := range map[string]struct {
		files files
		want  string // server|agent|"", service-cidr, server, data-dir, port
	}{
		"yaml and yml of the directory, in lexical order, and nothing else": {
			files{etc: "service-cidr: 1\n", etc + ".d/20.yml": "service-cidr: 3\n", etc + ".d/10.YAML": "service-cidr: 2\n", etc + ".d/30.yaml.bak": "service-cidr: 4\n"}, " 3   "},
		"a plus sign appends, to a scalar and to a list": {
			files{etc: "service-cidr: \"1\"\n", etc + ".d/1.yaml": "service-cidr+: [\"2\"]\n", etc + ".d/2.yaml": "service-cidr+: \"3,4\"\n"}, " 1,2,3,4   "},
		"a plus sign alone begins": {files{etc + ".d/1.yaml": "service-cidr+: \"2\"\n"}, " 2   "},
		"numbers stay as they are, in quotes or not": {
			files{etc: "https-listen-port: \"7443\"\n", etc + ".d/1.yaml": "x: 7443\n"}, "    7443"},
		"a port without quotes":        {files{etc: "https-listen-port: 7443\n"}, "    7443"},
		"a long number is not rounded": {files{etc: "data-dir: 20231231235959\n"}, "   20231231235959 "},
		"a key of one letter":          {files{etc: "s: https://a\nd: /x\n"}, "  https://a /x "},
		"the command line wins":        {files{etc: "server: https://a\n", "/etc/systemd/system/k3s-agent.service": unit("/usr/local/bin/k3s agent --server https://b")}, "agent  https://b  "},
		"the file wins over the environment": {
			files{etc: "server: https://a\n", "/etc/systemd/system/k3s-agent.service": unit("/k3s agent", "Environment=K3S_URL=https://b")}, "agent  https://a  "},
		"of a list both count, the file's first": {
			files{etc: "service-cidr: a\n", "/etc/systemd/system/k3s.service": unit("/k3s server --service-cidr=b")}, "server a,b   "},
		"--config elsewhere, with its directory": {
			files{etc: "service-cidr: no\n", "/srv/k.yaml": "service-cidr: a\n", "/srv/k.yaml.d/1.yaml": "service-cidr+: b\n", "/etc/systemd/system/k3s.service": unit("/k3s server --config /srv/k.yaml")}, "server a,b   "},
		"-c": {files{"/srv/k.yaml": "service-cidr: a\n", "/etc/systemd/system/k3s.service": unit("/k3s server -c=/srv/k.yaml")}, "server a   "},
		"the variable for the file wins over the flag": {
			files{"/a.yaml": "service-cidr: a\n", "/b.yaml": "service-cidr: b\n", "/etc/systemd/system/k3s.service": unit("/k3s server --config /b.yaml", "Environment=K3S_CONFIG_FILE=/a.yaml")}, "server a   "},
		"a service of another name, with the installer's own quoting": {
			files{"/etc/systemd/system/k3s-prod.service": unit("/usr/local/bin/k3s \\\n    server \\\n\t'--service-cidr' \\\n\t'a' \\\n", "EnvironmentFile=-/etc/default/%N", "EnvironmentFile=-/etc/sysconfig/%N", "EnvironmentFile=-/etc/systemd/system/k3s-prod.service.env"),
				"/etc/default/k3s-prod": "K3S_DATA_DIR=/x\n"}, "server a  /x "},
		"an environment file without a unit":   {files{"/etc/rancher/k3s/k3s-agent.env": "K3S_URL='https://a'\n"}, "  https://a  "},
		"a file that is no YAML is reported":   {files{etc: "{{\n"}, "    problem"},
		"another command of k3s is no service": {files{"/etc/systemd/system/k3s-x.service": unit("/k3s etcd-snapshot save --data-dir /no")}, "    "},
		"both on one node":                     {files{"/etc/systemd/system/k3s.service": unit("/k3s server"), "/etc/systemd/system/k3s-agent.service": unit("/k3s agent -s https://a")}, "agent  https://a  |server    "},
	} {
		var got []string
		for _, r := range RancherCommands(tc.files, "k3s", Commands(tc.files)) {
			kind := ""
			switch {
			case r.Server:
				kind = "server"
			case r.Agent:
				kind = "agent"
			}
			last := r.Value("", "https-listen-port")
			if len(r.Problems) > 0 {
				last = "problem"
			}
			got = append(got, strings.Join([]string{kind, strings.Join(r.List("service-cidr"), ","), r.Value("URL", "server", "s"), r.Value("DATA_DIR", "data-dir", "d"), last}, " "))
		}
		if s := strings.Join(got, "|"); s != tc.want {
			t.Errorf("%s: %q, want %q", sentence, s, tc.want)
		}
	}
}

func FuzzRancher(f *testing.F) {
	for _, s := range []string{"a: b\nc+: [d, 1, true, null]\n", "a+: {b: c}\na: 1.5\n", "s: https://x\n", "[]", "a"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, in string) {
		for _, r := range RancherCommands(files{"/etc/rancher/rke2/config.yaml": in, "/etc/rancher/rke2/config.yaml.d/1.yml": in}, "rke2", nil) {
			r.Value("URL", "server", "s")
			r.List("a")
		}
	})
}
