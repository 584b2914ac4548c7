package nodeconf

import (
	"strings"
	"testing"

	"github.com/firsthop/firsthop/units/unitfile"
)

func TestLoadUnitMergesAsSystemdDoes(t *testing.T) {
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
		for _, w := range unitfile.Words(in) {
			expandWord(w, map[string]string{"A": in})
		}
	})
}
