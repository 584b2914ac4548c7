package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/natinit/instance"
)

// Hosts, as far as their files tell.
var (
	systemd252 = map[string]string{
		"/run/systemd/system/": "", "/etc/systemd/system/multi-user.target.wants/ssh.service": "-> /usr/lib/systemd/system/ssh.service",
		"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": "", "/opt/": "",
	}
	systemd237 = map[string]string{
		"/run/systemd/system/": "", "/etc/systemd/system/": "", "/lib": "-> usr/lib", "/usr/lib/systemd/libsystemd-shared-237.so": "", "/opt/": "",
	}
	openrc = map[string]string{
		"/run/openrc/": "", "/etc/init.d/localmount": "#!/sbin/openrc-run\n", "/etc/runlevels/default/": "", "/opt/": "",
		"/etc/fstab": "/dev/vda / ext4 rw 0 1\n",
	}
	sysvinit = map[string]string{"/etc/inittab": "::sysinit:/bin/mount -a\n", "/etc/fstab": "/dev/vda / ext4 rw 0 1\n", "/opt/": ""}
	talos    = map[string]string{"/proc/1/comm": "init\n", "/etc/": ""}
)

func with(base map[string]string, more ...string) map[string]string {
	m := map[string]string{}
	for k, v := range base {
		m[k] = v
	}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

const (
	servicePath = systemDir + "/" + ServiceName
	serviceLink = systemDir + "/multi-user.target.wants/" + ServiceName
	mountPath   = systemDir + "/sys-fs-bpf.mount"
	mountLink   = systemDir + "/local-fs.target.wants/sys-fs-bpf.mount"
)

const pkgPath = "/usr/lib/systemd/system/" + ServiceName

var pkgUnit, ourService = func() (string, string) {
	pkg, err := PackageUnit()
	if err != nil {
		panic(err)
	}
	opts, err := ServiceUnit(Config{}, 252)
	if err != nil {
		panic(err)
	}
	return string(pkg), string(render(opts))
}()

var ourMount = string(render(MountUnit(DefaultBPFFS)))

func TestInstall(t *testing.T) {
	binary := "mkdir /opt/firsthop\nmkdir /opt/firsthop/bin\nwrite /opt/firsthop/bin/firsthop\n"
	service := "write " + servicePath + "\nenable " + ServiceName
	otherMount := "[Mount]\nWhat=bpf\nWhere=/sys/fs/bpf\nType=bpf\n"
	fstab := "/dev/vda / ext4 rw 0 1\nbpf /sys/fs/bpf bpf rw 0 0\n"
	for _, tt := range []struct {
		row      string
		host     map[string]string
		want     string // the actions
		survives bool
		says     []string // in statement, warnings, notes
	}{
		{"systemd mounts the bpffs itself from 239 on", systemd252, binary + service, true,
			[]string{"systemd 252 mounts /sys/fs/bpf itself"}},
		{"an older systemd gets a mount unit", systemd237,
			binary + "write " + mountPath + "\nenable sys-fs-bpf.mount\n" + service, true, []string{"sys-fs-bpf.mount mounts /sys/fs/bpf, because systemd does not before version 239 (here 237)"}},
		{"an older systemd whose fstab mounts it needs no unit", with(systemd237, "/etc/fstab", fstab),
			binary + service, true, []string{`line "bpf /sys/fs/bpf bpf rw 0 0"`}},
		{"an older systemd with somebody's mount unit uses that", with(systemd237, mountPath, otherMount),
			binary + service, true, []string{mountPath + " is not ours: it is used"}},
		{"an upgraded systemd refuses our mount unit, so it goes", with(systemd252, mountPath, ourMount, mountLink, "-> "+mountPath),
			"mkdir /opt/firsthop\nmkdir /opt/firsthop/bin\nwrite /opt/firsthop/bin/firsthop\ndisable sys-fs-bpf.mount\nremove " + mountPath + "\n" + service, true, nil},
		{"a refused mount unit of somebody else stays", with(systemd252, mountPath, otherMount),
			binary + service, true, []string{"refuses it (bad-setting)"}},
		{"a masked mount unit stays masked", with(systemd252, mountPath, "-> /dev/null"),
			binary + service, true, []string{"sys-fs-bpf.mount is masked"}},
		{"an fstab line beside systemd's own mount is dangerous", with(systemd252, "/etc/fstab", fstab),
			binary + service, true, []string{"second bpffs over the first"}},
		{"an unknown version gets neither mount unit nor filter", map[string]string{"/run/systemd/system/": "", "/etc/systemd/system/": "", "/opt/": ""},
			binary + service, true, []string{"version of systemd is not known", "mounts /sys/fs/bpf where nothing else has"}},
		{"a masked service is the administrator's word", with(systemd252, servicePath, "-> /dev/null"), "", false,
			[]string{"Nothing of firsthop starts at boot", "masked by " + servicePath}},
		{"so is one masked until the next boot", with(systemd252, "/run/systemd/system/"+ServiceName, "-> /dev/null"), "", false,
			[]string{"masked by /run/"}},
		{"a packaged unit is enabled and not hidden by one of ours", with(systemd252, "/usr/lib/systemd/system/"+ServiceName, "[Install]\nWantedBy=multi-user.target\n"),
			binary + "enable " + ServiceName, true, []string{"is there already"}},
		{"a packaged unit's program is not copied", with(systemd252, pkgPath, pkgUnit, PackageProgram, "ELF"),
			"enable " + ServiceName, true, []string{"After a reboot the package's " + ServiceName + " (" + pkgPath + ")"}},
		{"a packaged unit that is enabled leaves nothing to do", with(systemd252, pkgPath, pkgUnit, PackageProgram, "ELF", serviceLink, "-> "+pkgPath),
			"", true, []string{pkgPath + " is there already"}},
		{"a packaged unit whose program is gone is warned of", with(systemd252, pkgPath, pkgUnit),
			"enable " + ServiceName, false, []string{PackageProgram + ", which is not there"}},
		{"what we installed before the package is handed over to it", with(systemd252, pkgPath, pkgUnit, PackageProgram, "ELF", servicePath, ourService, serviceLink, "-> "+servicePath),
			"link " + serviceLink + "\nremove " + servicePath, true, []string{"is ours and goes, because it hides " + pkgPath}},
		{"an administrator's version of a packaged unit stays", with(systemd252, pkgPath, pkgUnit, PackageProgram, "ELF", servicePath, pkgUnit+"# edited\n", serviceLink, "-> "+servicePath),
			"", true, []string{servicePath + " hides " + pkgPath}},
		{"a drop-in is kept", with(systemd252, servicePath+".d/local.conf", "[Service]\nTimeoutStartSec=5s\n"), binary + service, true,
			[]string{"local.conf applies and is left"}},
		{"a drop-in that hides our mounts is warned of", with(systemd252, servicePath+".d/local.conf", "[Service]\nProtectHome=no\nPrivateTmp=yes\n"), binary + service, true,
			[]string{"PrivateTmp=yes, which gives the service a mount namespace"}},
		{"a preset that disables everything is noted", with(systemd252, "/usr/lib/systemd/system-preset/99-default-disable.preset", "disable *\n"), binary + service, true,
			[]string{"99-default-disable.preset disables " + ServiceName}},
		{"a preset that enables ours comes first", with(systemd252, "/usr/lib/systemd/system-preset/99-default-disable.preset", "disable *\n",
			"/etc/systemd/system-preset/10-k.preset", "enable firsthop-*\n"), binary + service, true, nil},
		{"what a killed run left goes", with(systemd252, systemDir+"/.firsthop-firsthop-init.service-123", "half"),
			binary + "remove " + systemDir + "/.firsthop-firsthop-init.service-123\n" + service, true, nil},
		{"OpenRC runs a script of ours", openrc, binary + "write /etc/init.d/firsthop-init\nlink /etc/runlevels/default/firsthop-init", true,
			[]string{"firsthop-init mounts /sys/fs/bpf where nothing else has"}},
		{"OpenRC of 2025 mounts the bpffs", with(openrc, "/etc/init.d/sysfs", "# /sys/fs/x\nmount -n -t bpf bpf /sys/fs/bpf\n"),
			binary + "write /etc/init.d/firsthop-init\nlink /etc/runlevels/default/firsthop-init", true, []string{"OpenRC mounts /sys/fs/bpf itself"}},
		{"OpenRC and fstab would mount it twice", with(openrc, "/etc/init.d/sysfs", "mount -n -t bpf bpf /sys/fs/bpf\n", "/etc/fstab", fstab),
			binary + "write /etc/init.d/firsthop-init\nlink /etc/runlevels/default/firsthop-init", true, []string{"second bpffs over the first"}},
		{"another init that reads fstab gets a line", sysvinit, "write /etc/fstab", false,
			[]string{"the line in /etc/fstab mounts", "does not survive"}},
		{"a line that is there is enough", with(sysvinit, "/etc/fstab", fstab), "", false, []string{`"bpf /sys/fs/bpf bpf rw 0 0"`}},
		{"where nobody is known nothing is written", talos, "", false, []string{"Nothing survives a reboot", "pid 1 is init"}},
		{"an fstab that nobody is known to read is left alone", with(talos, "/etc/fstab", "# none\n"), "", false, []string{"nothing is known to read its /etc/fstab"}},
	} {
		t.Run(tt.row, func(t *testing.T) {
			h := newHost(t, tt.host)
			before := h.snapshot()
			c := h.config()
			plan, err := PlanInstall(context.Background(), c)
			if err != nil {
				t.Fatal(err)
			}
			h.same(before, "the plan")
			if d := cmp.Diff(strings.TrimSuffix(tt.want, "\n"), kinds(plan)); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
			done := mustInstall(t, c)
			if kinds(done) != kinds(plan) {
				t.Errorf("planned:\n%s\ndone:\n%s", kinds(plan), kinds(done))
			}
			if done.Survives != tt.survives {
				t.Errorf("survives = %v: %s", done.Survives, done.Statement)
			}
			all := strings.Join(append(append([]string{done.Statement}, done.Warnings...), done.Notes...), "\n")
			for _, want := range tt.says {
				if !strings.Contains(all, want) {
					t.Errorf("does not say %q:\n%s", want, all)
				}
			}
			for _, a := range done.Actions {
				if !a.Done {
					t.Errorf("not done: %+v", a)
				}
			}
			installed := h.snapshot()
			if again := mustInstall(t, c); again.Changed() {
				t.Errorf("the second install did:\n%s", kinds(again))
			}
			h.same(installed, "the second install")
		})
	}
}

func TestUninstallRestoresTheHost(t *testing.T) {
	hosts := map[string]map[string]string{
		"systemd": systemd252, "old systemd": systemd237, "OpenRC": openrc, "sysvinit": sysvinit, "nobody": talos,
		"an fstab without a newline at its end": with(sysvinit, "/etc/fstab", "# a\n/dev/vda / ext4 rw 0 1"),
		"an empty fstab":                        with(sysvinit, "/etc/fstab", ""),
		"a linked fstab":                        with(sysvinit, "/etc/fstab", "-> /persist/fstab", "/persist/fstab", "# x\n"),
		"a linked /opt":                         with(systemd252, "/opt", "-> /var/opt", "/var/opt/", ""),
		"files of others": with(systemd252, servicePath+".d/local.conf", "[Service]\nTimeoutStartSec=5s\n", EnvironmentFile, "A=b\n",
			mountPath, "[Mount]\nWhat=bpf\n", "/etc/systemd/system/basic.target.wants/x.service", "-> /x"),
		"no unit directory": {"/run/systemd/system/": "", "/etc/": ""}, // and no /opt
	}
	delete(hosts["a linked /opt"], "/opt/")
	for row, files := range hosts {
		t.Run(row, func(t *testing.T) {
			h := newHost(t, files)
			before := h.snapshot()
			var rec record
			c := h.config()
			c.Record, c.Owned = rec.add, rec.owned
			r := mustInstall(t, c)
			if len(rec.entries) != len(r.Actions) {
				t.Errorf("recorded %q, did:\n%s", rec.entries, kinds(r))
			}
			plan, err := PlanUninstall(context.Background(), c)
			if err != nil {
				t.Fatal(err)
			}
			if done := mustUninstall(t, c); kinds(done) != kinds(plan) {
				t.Errorf("planned:\n%s\ndone:\n%s", kinds(plan), kinds(done))
			}
			after := h.snapshot()
			if row == "no unit directory" { // systemd's own, it stays
				delete(after, "/etc/systemd/system")
				delete(after, "/etc/systemd")
			}
			if d := cmp.Diff(before, after); d != "" {
				t.Errorf("install and uninstall (-before +after):\n%s", d)
			}
			if again := mustUninstall(t, c); again.Changed() {
				t.Errorf("the second uninstall did:\n%s", kinds(again))
			}
		})
	}
}

// Without a record the marker and the binary's build information are enough.
func TestUninstallWithoutAJournal(t *testing.T) {
	h := newHost(t, systemd252)
	before := h.snapshot()
	mustInstall(t, h.config())
	c := h.config()
	c.BinarySource = ""
	mustUninstall(t, c)
	h.same(before, "install and uninstall")
}

func TestInstallNamesForeignFiles(t *testing.T) {
	for row, tt := range map[string]struct {
		host map[string]string
		path string
	}{
		"a service that is not ours":         {with(systemd252, servicePath, "[Service]\nExecStart=/x\n"), servicePath},
		"a directory in the unit's place":    {with(systemd252, servicePath+"/", ""), servicePath},
		"a link in the unit's place":         {with(systemd252, "/x", "[Unit]\n", servicePath, "-> /x"), servicePath},
		"a file in the place of the link":    {with(systemd252, serviceLink, "x"), serviceLink},
		"another program in our place":       {with(systemd252, BinaryPath, "#!/bin/sh\n"), BinaryPath},
		"an OpenRC script that is not ours":  {with(openrc, openrcScript, "#!/sbin/openrc-run\n"), openrcScript},
		"another program's binary by a link": {with(systemd252, BinaryPath, "-> /not/there"), BinaryPath},
	} {
		t.Run(row, func(t *testing.T) {
			h := newHost(t, tt.host)
			before := h.snapshot()
			_, err := Install(context.Background(), h.config())
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("install says %v, want ErrForeign that names %s", err, tt.path)
			}
			h.same(before, "the refused install")
			mustUninstall(t, h.config())
			h.same(before, "uninstall")
		})
	}
}

func TestInstallOnFileSystemsThatRefuse(t *testing.T) {
	for row, tt := range map[string]struct {
		at       string // file systems below this path are
		state    fsState
		want     error
		survives bool
	}{
		"a read-only /etc":            {"/etc", fsState{readOnly: true}, ErrReadOnly, false},
		"a read-only /opt":            {"/opt", fsState{readOnly: true}, ErrReadOnly, false},
		"a noexec /opt":               {"/opt", fsState{noExec: true}, ErrNoExec, false},
		"an /etc in memory":           {"/etc", fsState{volatile: "a file system in memory (tmpfs)"}, nil, false},
		"an /opt in memory":           {"/opt", fsState{volatile: "a file system in memory (tmpfs)"}, nil, false},
		"a state directory in memory": {"/var/lib", fsState{volatile: "a file system in memory (tmpfs)"}, nil, false},
		"a /usr that does not matter": {"/usr", fsState{readOnly: true, noExec: true}, nil, true},
	} {
		t.Run(row, func(t *testing.T) {
			h := newHost(t, with(systemd252, "/var/lib/", ""))
			before := h.snapshot()
			c := h.config()
			c.statfs = func(at string) (fsState, error) {
				st, err := onDisk(at)
				if strings.HasPrefix(at, h.path(tt.at)) && err == nil {
					return tt.state, nil
				}
				return st, err
			}
			r, err := Install(context.Background(), c)
			if !errors.Is(err, tt.want) {
				t.Fatalf("install says %v, want %v", err, tt.want)
			}
			if err != nil {
				h.same(before, "the refused install")
			}
			if r.Survives != tt.survives || err == nil && !tt.survives && len(r.Warnings) == 0 {
				t.Errorf("survives %v, %s, warnings %q", r.Survives, r.Statement, r.Warnings)
			}
		})
	}
}

// A read-only host on which all is installed already needs no write.
func TestInstallOnAReadOnlyHostWithTheUnitInItsImage(t *testing.T) {
	h := newHost(t, systemd252)
	mustInstall(t, h.config())
	c := h.config()
	c.statfs = func(string) (fsState, error) { return fsState{readOnly: true}, nil }
	if r := mustInstall(t, c); r.Changed() || !r.Survives {
		t.Errorf("%+v", r)
	}
}

// Stopped before any of its steps, an install is completed by the next, and an
// uninstall as well.
func TestInstallStoppedAnywhereIsCompletedByTheNextRun(t *testing.T) {
	stop := errors.New("stopped")
	stopAt := func(n int) func(instance.Kind, string, string) error {
		return func(instance.Kind, string, string) error {
			if n--; n < 0 {
				return stop
			}
			return nil
		}
	}
	for _, files := range []map[string]string{systemd252, systemd237, openrc, sysvinit} {
		whole := newHost(t, files)
		before := whole.snapshot()
		steps := len(mustInstall(t, whole.config()).Actions)
		want := whole.snapshot()
		for n := range steps {
			h := newHost(t, files)
			c := h.config()
			c.Record = stopAt(n)
			if _, err := Install(context.Background(), c); !errors.Is(err, stop) {
				t.Fatalf("step %d: %v", n, err)
			}
			mustInstall(t, h.config())
			h.same(want, fmt.Sprintf("install stopped at step %d and completed", n))
		}
		undo, err := PlanUninstall(context.Background(), whole.config())
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(undo.Actions) {
			h := newHost(t, files)
			mustInstall(t, h.config())
			c := h.config()
			c.Record = stopAt(n)
			if _, err := Uninstall(context.Background(), c); !errors.Is(err, stop) {
				t.Fatalf("step %d: %v", n, err)
			}
			mustUninstall(t, h.config())
			h.same(before, fmt.Sprintf("uninstall stopped at step %d and completed", n))
		}
	}
}

func TestInstallReplacesTheBinaryAndTheUnit(t *testing.T) {
	h := newHost(t, systemd252)
	mustInstall(t, h.config())
	running, err := os.Open(h.path(BinaryPath)) // as the service would hold it
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	c := h.config()
	c.BinarySource = otherBuild(t)
	c.Args = []string{"init", "--boot", "--log-level", "debug"}
	var former []string
	c.Record = func(kind instance.Kind, target, was string) error {
		former = append(former, fmt.Sprintf("%s %s %d", kind, target, min(len(was), 1)))
		return nil
	}
	r := mustInstall(t, c)
	want := []string{"write " + BinaryPath + " 1", "write " + servicePath + " 1"}
	if d := cmp.Diff(want, former); d != "" {
		t.Errorf("recorded with what was there before (-want +got):\n%s\n%+v", d, r)
	}
	fi, err := os.Stat(h.path(BinaryPath))
	if err != nil || fi.Mode() != 0o755 {
		t.Errorf("binary: %v %v", fi.Mode(), err)
	}
	if a, _ := hashFile(h.path(BinaryPath)); string(a) != string(mustHash(t, c.BinarySource)) {
		t.Error("the binary is not the new one")
	}
	if !strings.Contains(h.read(servicePath), "--log-level debug") {
		t.Error("the unit is not the new one")
	}
}

func mustHash(t *testing.T, p string) []byte {
	t.Helper()
	sum, err := hashFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
