package nodeconf

import (
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// files are a host's files; the value "->/dev/null" is a link that leads to
// nothing regular.
type files map[string]string

func (f files) ReadFile(p string) ([]byte, error) {
	s, ok := f[p]
	if !ok || strings.HasPrefix(s, "->") {
		return nil, fs.ErrNotExist
	}
	return []byte(s), nil
}

func (f files) Glob(pattern string) []string {
	seen := map[string]bool{}
	for p := range f {
		for ; p != "/"; p = path.Dir(p) {
			if ok, _ := path.Match(pattern, p); ok {
				seen[p] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func TestParseUnit(t *testing.T) {
	for sentence, tc := range map[string]struct{ text, want string }{
		"a continued line becomes one with blanks":                    {"[Service]\nExecStart=/bin/k \\\n  --a \\\n  --b\n", "Service.ExecStart=/bin/k    --a    --b"},
		"a comment inside of a continued line is left out":            {"[Service]\nExecStart=/bin/k \\\n# --a \\\n; x\n  --b\n", "Service.ExecStart=/bin/k    --b"},
		"blanks around the equals sign do not count":                  {"[Service]\n  Environment = A=b \n", "Service.Environment=A=b"},
		"two backslashes at the end are one escaped, no continuation": {"[Service]\nA=x\\\\\nB=y\n", "Service.A=x\\\\\nService.B=y"},
		"a continued line at the end of the file":                     {"[Service]\nA=x \\", "Service.A=x"},
		"Windows' line ends and a byte order mark":                    {"\uFEFF[Service]\r\nA=x\r\nB=y \\\r\n z\r\n", "Service.A=x\nService.B=y   z"},
		"what is no assignment is left out":                           {"[Service]\nnothing\n[Unit\nA=x\n", "Service.A=x"},
		"a value may have equals signs":                               {"[Unit]\n[Service]\nE=A=--b=c\n", "Service.E=A=--b=c"},
	} {
		var got []string
		for _, s := range parseUnit(tc.text) {
			got = append(got, s.section+"."+s.key+"="+s.value)
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s:\n%q, want\n%q", sentence, s, tc.want)
		}
	}
}

func TestParseEnv(t *testing.T) {
	for sentence, tc := range map[string]struct{ text, want string }{
		"a plain value loses blanks at its ends":            {"A =  b c  \n", "b c"},
		"quotes of both kinds":                              {"A='b'\" c\"\n", "b c"},
		"double quotes go over lines that a backslash ends": {"A=\"--x \\\n--y \\\n--z\"\n", "--x --y --z"},
		"an unquoted line that a backslash ends":            {"A=--x \\\n--y\n", "--x --y"},
		"two backslashes, from a here-document that was written with quotes, stay one and break the line": {"A=\"--x \\\\\n--y\"\n", "--x \\\n--y"},
		"the later one counts":                          {"A=b\nA=c\n", "c"},
		"export is not known to systemd":                {"export A=b\n", ""},
		"a comment":                                     {"# A=b\n; A=c\nA=d\n", "d"},
		"a comment that a backslash continues":          {"# x \\\nA=b\nA=c\n", "c"},
		"an escape in double quotes":                    {`A="b\"c\n\$d"`, `b"c\n$d`},
		"no escape in single quotes":                    {`A='b\'` + "\nB=x\n", `b\`},
		"Windows' line ends":                            {"A=b\r\n", "b"},
		"no value":                                      {"A=\nB=c\n", ""},
		"a quote that is not closed ends with the file": {"A=\"b\nc", "b\nc"},
		"a hash inside of a value is no comment":        {"A=b # c\n", "b # c"},
	} {
		if got := ParseEnv(tc.text)["A"]; got != tc.want {
			t.Errorf("%s: %q, want %q", sentence, got, tc.want)
		}
	}
}

func TestExecCommands(t *testing.T) {
	env := map[string]string{"ARGS": "--a --b='c d'", "ONE": "x y", "EMPTY": ""}
	expand := newSpecifiers(files{"/etc/hostname": "node1.example\n"}, "k3s-a@b-c.service")
	for sentence, tc := range map[string]struct {
		value string
		want  [][]string
	}{
		"a lone variable becomes words, with its quotes":     {"/bin/k $ARGS $EMPTY end", [][]string{{"/bin/k", "--a", "--b=c d", "end"}}},
		"a lone variable in quotes too (kOps, kubespray)":    {`/bin/k "$ARGS"`, [][]string{{"/bin/k", "--a", "--b=c d"}}},
		"braces keep one word":                               {"/bin/k --x=${ONE} ${NONE}", [][]string{{"/bin/k", "--x=x y", ""}}},
		"a default in braces":                                {"/bin/k ${NONE:-d} ${ONE:+e}", [][]string{{"/bin/k", "d", "e"}}},
		"a variable inside of a word without braces is none": {"/bin/k --x=$ONE", [][]string{{"/bin/k", "--x=$ONE"}}},
		"two dollars are one":                                {"/bin/k $$ONE a$$b", [][]string{{"/bin/k", "$ONE", "a$b"}}},
		"a colon switches variables off":                     {"-:/bin/k $ARGS", [][]string{{"/bin/k", "$ARGS"}}},
		"an at sign has the process's own name follow":       {"@/bin/k kkk --a", [][]string{{"/bin/k", "--a"}}},
		"several commands in one line":                       {`/bin/a ; /bin/b \; c`, [][]string{{"/bin/a"}, {"/bin/b", ";", "c"}}},
		"quotes anywhere and escapes":                        {`/bin/k '--a=b c' --d="e"f\x2dg --h\sI`, [][]string{{"/bin/k", "--a=b c", "--d=ef-g", "--h I"}}},
		"an unknown escape stays":                            {`/bin/k a\qb`, [][]string{{"/bin/k", `a\qb`}}},
		"specifiers":                                         {"/bin/k %n %N %p %i %I %j %H %l %% %t %Z", [][]string{{"/bin/k", "k3s-a@b-c.service", "k3s-a@b-c", "k3s-a", "b-c", "b/c", "a", "node1.example", "node1", "%", "/run", "%Z"}}},
		"nothing":                                            {"", nil},
	} {
		if got := execCommands(tc.value, expand, env); !slices.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%s: %q, want %q", sentence, got, tc.want)
		}
	}
}

func TestUnitsAreMergedAsSystemdDoes(t *testing.T) {
	const sys, etc, run = "/usr/lib/systemd/system/", "/etc/systemd/system/", "/run/systemd/system/"
	svc := func(lines ...string) string { return "[Service]\n" + strings.Join(lines, "\n") + "\n" }
	for sentence, tc := range map[string]struct {
		files files
		want  string // the commands, joined
	}{
		"a unit of /etc hides the one of the package": {
			files{etc + "kubelet.service": svc("ExecStart=/a"), sys + "kubelet.service": svc("ExecStart=/b")}, "/a"},
		"a link to /dev/null masks": {
			files{etc + "kubelet.service": "->/dev/null", sys + "kubelet.service": svc("ExecStart=/b")}, ""},
		"an empty file masks": {
			files{run + "kubelet.service": "", sys + "kubelet.service": svc("ExecStart=/b")}, ""},
		"a drop-in of the package counts with a unit of /etc": {
			files{etc + "kubelet.service": svc("ExecStart=/a $X"), sys + "kubelet.service.d/10.conf": svc("Environment=X=y")}, "/a y"},
		"a drop-in resets what is before it": {
			files{sys + "kubelet.service": svc("ExecStart=/a"), etc + "kubelet.service.d/10.conf": svc("ExecStart=", "ExecStart=/b")}, "/b"},
		"drop-ins count by name, whatever their directory": {
			files{sys + "kubelet.service": svc("ExecStart=/a $X"), etc + "kubelet.service.d/10.conf": svc("Environment=X=etc"), sys + "kubelet.service.d/20.conf": svc("Environment=X=usr")}, "/a usr"},
		"a later name counts, though its directory comes first": {
			files{sys + "kubelet.service": svc("ExecStart=/a $X"), etc + "kubelet.service.d/30.conf": svc("Environment=X=etc"), sys + "kubelet.service.d/10.conf": svc("Environment=X=usr")}, "/a etc"},
		"of two drop-ins with one name that of /etc counts": {
			files{sys + "kubelet.service": svc("ExecStart=/a $X $Y"), etc + "kubelet.service.d/10.conf": svc("Environment=X=etc"), sys + "kubelet.service.d/10.conf": svc("Environment=Y=usr")}, "/a etc"},
		"a masked drop-in": {
			files{sys + "kubelet.service": svc("ExecStart=/a $X"), etc + "kubelet.service.d/10.conf": "->/dev/null", sys + "kubelet.service.d/10.conf": svc("Environment=X=usr")}, "/a"},
		"drop-ins for a prefix of the name": {
			files{etc + "k3s-one.service": svc("ExecStart=/a $X"), etc + "k3s-.service.d/10.conf": svc("Environment=X=y")}, "/a y"},
		"an instance without a file of its own has its template's": {
			files{etc + "kube-apiserver@.service": svc("ExecStart=/never %i"), etc + "kube-apiserver@a.service": svc("ExecStart=/a %i")}, "/never \n/a a"},
		"a file wins over Environment=, the later file over the earlier": {
			files{etc + "kubelet.service": svc("Environment=X=unit Y=unit", "EnvironmentFile=-/etc/d1", "EnvironmentFile=/etc/d2", "ExecStart=/a $X $Y"), "/etc/d1": "X=1\nY=1\n", "/etc/d2": "X=2\n"}, "/a 2 1"},
		"an environment file that is not there": {
			files{etc + "kubelet.service": svc("EnvironmentFile=-/etc/none", "ExecStart=/a $X")}, "/a"},
		"environment files by pattern, named with a specifier": {
			files{etc + "kubelet.service": svc("EnvironmentFile=/etc/%N.d/*.env", "ExecStart=/a $X $Y"), "/etc/kubelet.d/1.env": "X=1", "/etc/kubelet.d/2.env": "Y=2"}, "/a 1 2"},
		"an empty EnvironmentFile= forgets those before": {
			files{etc + "kubelet.service": svc("EnvironmentFile=/etc/e", "EnvironmentFile=", "ExecStart=/a $X"), "/etc/e": "X=1"}, "/a"},
		"UnsetEnvironment= takes away": {
			files{etc + "kubelet.service": svc("Environment=X=1", "UnsetEnvironment=X", "ExecStart=/a $X")}, "/a"},
		"other sections do not count": {
			files{etc + "kubelet.service": "[Install]\nExecStart=/no\n[Service]\nExecStart=/a\n"}, "/a"},
		"a unit of systemd-run": {
			files{"/run/systemd/transient/api.service": svc(`ExecStart=`, `ExecStart=@/opt/kube-apiserver "/opt/kube-apiserver" "--secure-port=6443"`)}, "/opt/kube-apiserver --secure-port=6443"},
		"a unit of the package with a name that tells nothing is not read": {
			files{sys + "cron.service": svc("ExecStart=/usr/sbin/cron")}, ""},
	} {
		var got []string
		for _, c := range Commands(tc.files) {
			got = append(got, strings.Join(c.Argv, " "))
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s: %q, want %q", sentence, s, tc.want)
		}
	}
}

func TestCommandsTakeShellsApart(t *testing.T) {
	unit := func(exec string) files {
		return files{"/etc/systemd/system/kubelet.service": "[Service]\nEnvironment=\"X=--a --b\" Y=/y\nExecStart=" + exec + "\n",
			"/opt/start.sh": "#!/bin/sh\nset -e\n. /opt/env\nexec /usr/bin/kubelet \\\n  $OPTS \"--q=$Y\" >>/var/log/k 2>&1\n", "/opt/env": "OPTS='--s --t'\n"}
	}
	for sentence, tc := range map[string]struct{ exec, want string }{
		"sh -c with exec and a redirection":       {`/bin/sh -c "exec /usr/bin/kubelet --a=1 2>&1 | logger -t k"`, "/usr/bin/kubelet --a=1\nlogger -t k"},
		"variables that the shell expands":        {`/bin/bash -c 'kubelet $X --c=$Y'`, "kubelet --a --b --c=/y"},
		"variables that systemd expands":          {`/bin/bash -ec "kubelet ${X}"`, "kubelet --a --b"},
		"a script":                                {"/opt/start.sh --ignored", "set -e\n/usr/bin/kubelet --s --t --q=/y"},
		"a script that a shell is given":          {"/bin/bash /opt/start.sh", "set -e\n/usr/bin/kubelet --s --t --q=/y"},
		"a command behind another and an if":      {`/bin/sh -c 'if [ -f /x ]; then mkdir -p /a && kubelet --a; fi'`, "[ -f /x ]\nmkdir -p /a\nkubelet --a"},
		"a shell inside of a shell":               {`/bin/sh -c "nohup bash -c 'kubelet --a'"`, "kubelet --a"},
		"an assignment in front of the command":   {`/bin/sh -c 'A=b exec kubelet --x="$A"'`, "kubelet --x=b"},
		"one behind a pipe, in a loop, in a case": {`/bin/sh -c 'case $Y in /y) while true; do kubelet $X | tee /l; done;; esac'`, "true\nkubelet --a --b\ntee /l"},
		"home directories are not looked up":      {`/bin/sh -c 'kubelet --a=~/x ~root/y'`, "kubelet --a=~/x ~root/y"},
		"a command substitution is not run":       {"/bin/sh -c 'kubelet --ip=$(hostname -i) `id` --b'", "kubelet --ip= --b"},
	} {
		var got []string
		for _, c := range Commands(unit(tc.exec)) {
			got = append(got, strings.Join(c.Argv, " "))
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s: %q, want %q", sentence, s, tc.want)
		}
	}
}

func TestShellBoundsVariables(t *testing.T) {
	host := files{"/etc/init.d/k3s": "command=/k3s\ncommand_args=xxxxxxxx\n" + strings.Repeat("command_args=$command_args$command_args\n", 60)}
	if got := Commands(host); len(got) != 1 || len(got[0].Argv) != 1 {
		t.Errorf("a value that doubles sixty times: %d words", len(got[0].Argv))
	}
}

func TestOpenRCCommands(t *testing.T) {
	for sentence, tc := range map[string]struct {
		files files
		want  string
	}{
		"the installer of k3s": {files{"/etc/init.d/k3s": "#!/sbin/openrc-run\ndepend() {\n    after network-online\n    want cgroups\n}\nstart_pre() {\n    rm -f /tmp/k3s.*\n}\nsupervisor=supervise-daemon\nname=k3s\ncommand=\"/usr/local/bin/k3s\"\ncommand_args=\"server \\\n\t'--service-cidr' \\\n\t'10.45.0.0/16' \\\n    >>/var/log/k3s.log 2>&1\"\n"},
			"/usr/local/bin/k3s server --service-cidr 10.45.0.0/16"},
		"the package of Alpine has its flags in conf.d": {files{"/etc/conf.d/k3s": "K3S_OPTS=\"--node-ip 10.0.0.1\" # mine\n", "/etc/init.d/k3s": "command=/usr/bin/k3s\ncommand_args=\"${K3S_EXEC:-server} ${K3S_OPTS}\"\n"},
			"/usr/bin/k3s server --node-ip 10.0.0.1"},
		"the kubelet of Alpine": {files{"/etc/conf.d/kubelet": "command_args=\"--kubeconfig=/etc/kubernetes/kubelet.conf\"\n", "/var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--x=y\"\n",
			"/etc/init.d/kubelet": "name=\"Kubelet\"\n[ -f /var/lib/kubelet/kubeadm-flags.env ] && . /var/lib/kubelet/kubeadm-flags.env\ncommand=\"/usr/bin/kubelet\"\ncommand_args=\"${command_args} ${KUBELET_KUBEADM_ARGS}\"\n: ${output_log:=/var/log/$RC_SVCNAME.log}\n"},
			"/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf --x=y"},
		"appended arguments":                 {files{"/etc/init.d/k3s-a": "command=/k3s\ncommand_args=agent\ncommand_args+=\" --server https://a\"\n"}, "/k3s agent --server https://a"},
		"a script of another service is not": {files{"/etc/init.d/sshd": "command=/sshd\n"}, ""},
		"runit":                              {files{"/etc/service/kubelet/run": "#!/bin/sh\nexec 2>&1\nexec chpst -u root kubelet --a\n"}, "chpst -u root kubelet --a"},
	} {
		var got []string
		for _, c := range Commands(tc.files) {
			got = append(got, strings.Join(c.Argv, " "))
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s: %q, want %q", sentence, s, tc.want)
		}
	}
}

func TestProgram(t *testing.T) {
	for _, tc := range []struct{ sentence, argv, name, want string }{
		{"itself", "/usr/bin/kubelet --a", "kubelet", "--a"},
		{"kOps' go-runner", "/go-runner --log-file=/x --also-stdout /usr/local/bin/kube-apiserver --a --b", "kube-apiserver", "--a --b"},
		{"hyperkube's word", "/hyperkube apiserver --a", "kube-apiserver", "--a"},
		{"hyperkube with the whole name", "hyperkube kube-apiserver --a", "kube-apiserver", "--a"},
		{"an image", "/usr/bin/docker run --net=host quay.io/x/kubelet:v1.30.1 --kubeconfig=/a", "kubelet", "--kubeconfig=/a"},
		{"an image by digest", "podman run x/k3s@sha256:abc server", "k3s", "server"},
		{"watch-termination of OpenShift", "watch-termination --x -- hyperkube kube-apiserver --openshift-config=/a", "kube-apiserver", "--openshift-config=/a"},
		{"another one", "/usr/bin/kube-proxy --a", "kubelet", "none"},
		{"a word of another program's", "/usr/bin/traefik apiserver --a", "kube-apiserver", "none"},
		{"the value of a flag", "/usr/bin/x --name=kubelet --a", "kubelet", "none"},
	} {
		args, ok := Program(strings.Fields(tc.argv), tc.name)
		got := strings.Join(args, " ")
		if !ok {
			got = "none"
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.sentence, got, tc.want)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, tc := range []struct{ sentence, args, names, want string }{
		{"with an equals sign", "--a=1", "a", "1"},
		{"separate", "--a 1", "a", "1"},
		{"the last one of several is last", "--a=1 --a 2", "a", "1,2"},
		{"an underscore", "--service_cluster_ip_range=x", "service-cluster-ip-range", "x"},
		{"one dash, as Go's flags have it", "-data-dir /x", "data-dir", "/x"},
		{"a short flag", "-d /x", "data-dir d", "/x"},
		{"a short flag with an equals sign", "-d=/x", "data-dir d", "/x"},
		{"a short flag with its value glued on", "-d/x", "data-dir d", "/x"},
		{"a longer name that begins alike", "--ab=1", "a", ""},
		{"no value", "--a", "a", ""},
		{"the next flag is no value", "--a --b", "a", ""},
		{"behind a lone --", "-- --a=1", "a", ""},
		{"an empty value", "--a=", "a", ""},
	} {
		got := strings.Join(Flags(strings.Fields(tc.args)).All(strings.Fields(tc.names)...), ",")
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.sentence, got, tc.want)
		}
	}
	for args, want := range map[string]bool{"--x": true, "--x=true": true, "--x=false": false, "--y": false, "--x=1 --x=0": false} {
		if got := Flags(strings.Fields(args)).Bool("x"); got != want {
			t.Errorf("%s: %v", args, got)
		}
	}
}

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

func FuzzUnit(f *testing.F) {
	for _, s := range []string{"[Service]\nExecStart=/bin/sh -c \"exec kubelet $A ${B:-c}\" \\\n # x\n", "[Service]\nEnvironment=\"A=--b c\" 'D=%n'\nExecStart=@/k k \\x41 \\u00e9 %% $A ; /b\n", "ExecStart=\\", "[Service]\nExecStart=\"a'b\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for _, c := range Commands(files{"/etc/systemd/system/kubelet.service": in}) {
			if len(c.Argv) == 0 {
				t.Fatalf("a command without words: %+v", c)
			}
		}
		for _, w := range splitUnit(in) {
			expandWord(w, map[string]string{"A": in})
		}
	})
}

func FuzzEnvFile(f *testing.F) {
	for _, s := range []string{"A=b\n", "A=\"b \\\nc\" 'd'\n", "A='b", "A=b\\", "#\\\n;\nexport A=b\nA==\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for name := range ParseEnv(in) {
			if !isVariable(name) {
				t.Fatalf("%q is no variable", name)
			}
		}
	})
}

func FuzzShell(f *testing.F) {
	for _, s := range []string{"a() { b; }\nc=\"d ${e:-f $(g)}\" h='i' \\\n j >>k 2>&1 # l\n", "command_args=\"server \\\n\t'--x' $y\"\n", "${a:=${b}}", "$(", "`", "\"$", "a=b c=d e", "${", "${a:-${a:-${a:-${a:-${a:-b}}}}}"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, in string) {
		host := files{"/etc/init.d/k3s": in, "/etc/conf.d/k3s": in}
		Commands(host)
		SplitArgs(host, in, map[string]string{"A": in})
	})
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

// A line that goes on and on costs no more than its length: a damaged unit must not hold a start up.
func TestParseUnitIsLinear(t *testing.T) {
	text := "[Service]\nExecStart=" + strings.Repeat("\\\n", 20_000) + "x\n"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := parseUnit(text)
	runtime.ReadMemStats(&after)
	if len(got) != 1 || got[0].key != "ExecStart" || got[0].value != "x" {
		t.Errorf("it is read as %.3v", got)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes are allocated for a text of %d", n, len(text))
	}
}
