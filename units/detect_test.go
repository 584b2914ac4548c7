package units

import (
	"testing"
)

func TestDetectInit(t *testing.T) {
	for row, tt := range map[string]struct {
		host map[string]string
		want Init
	}{
		"Debian 12":                           {systemd252, Init{Systemd, 252, "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so"}},
		"Debian 10, /lib is a link":           {map[string]string{"/run/systemd/system/": "", "/lib": "-> usr/lib", "/usr/lib/systemd/libsystemd-shared-241.so": ""}, Init{Systemd, 241, "/usr/lib/systemd/libsystemd-shared-241.so"}},
		"Ubuntu 18.04, /lib is a directory":   {map[string]string{"/run/systemd/system/": "", "/lib/systemd/libsystemd-shared-237.so": ""}, Init{Systemd, 237, "/lib/systemd/libsystemd-shared-237.so"}},
		"Fedora 40":                           {map[string]string{"/run/systemd/system/": "", "/usr/lib/systemd/libsystemd-shared-255.4-1.fc40.so": ""}, Init{Systemd, 255, "/usr/lib/systemd/libsystemd-shared-255.4-1.fc40.so"}},
		"CentOS 7 has no such library":        {map[string]string{"/run/systemd/system/": "", "/usr/lib/systemd/systemd": ""}, Init{Systemd, 0, "/run/systemd/system"}},
		"in the middle of an upgrade":         {map[string]string{"/run/systemd/system/": "", "/usr/lib/systemd/libsystemd-shared-237.so": "", "/usr/lib/systemd/libsystemd-shared-241.so": ""}, Init{Systemd, 0, "/run/systemd/system"}},
		"systemd is installed, not running":   {map[string]string{"/usr/lib/systemd/libsystemd-shared-252.so": "", "/proc/1/comm": "runit\n"}, Init{NoInit, 0, "pid 1 is runit"}},
		"OpenRC is installed, not running":    {map[string]string{"/sbin/openrc-run": "", "/proc/1/comm": "sh\n"}, Init{NoInit, 0, "pid 1 is sh"}},
		"Alpine":                              {openrc, Init{OpenRC, 0, "/run/openrc"}},
		"sysvinit":                            {sysvinit, Init{FstabInit, 0, "/etc/inittab"}},
		"an inittab without an fstab":         {map[string]string{"/etc/inittab": ""}, Init{Kind: NoInit}},
		"Void":                                {map[string]string{"/etc/runit/core-services/": "", "/etc/fstab": ""}, Init{FstabInit, 0, "/etc/runit"}},
		"Talos":                               {talos, Init{NoInit, 0, "pid 1 is init"}},
		"an empty tree":                       {nil, Init{Kind: NoInit}},
		"/run/systemd/system is no directory": {map[string]string{"/run/systemd/system": "x"}, Init{Kind: NoInit}},
	} {
		if got := DetectInit(newHost(t, tt.host).root); got != tt.want {
			t.Errorf("%s: %+v, want %+v", row, got, tt.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string]int{
		"252.38-1~deb12u1": 252, "245.4-4ubuntu3.24": 245, "v239": 239, "239 (239-82.el8)": 239, "systemd 219": 219,
		"257": 257, "255.4-1.fc40.so": 255, "252.so": 252, "": 0, "~rc1": 0, "99999999999999999999": 0,
	} {
		if got := parseVersion(s); got != want {
			t.Errorf("parseVersion(%q) = %d, want %d", s, got, want)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("252.38-1~deb12u1")
	f.Add("systemd v")
	f.Fuzz(func(t *testing.T, s string) {
		if v := parseVersion(s); v < 0 {
			t.Errorf("parseVersion(%q) = %d", s, v)
		}
	})
}
