package kernel

import (
	"testing"
)

func TestParseUnameRV(t *testing.T) {
	for _, test := range []struct {
		sentence, line, release, vendor string
		mainline                        Version
	}{
		{"the example that operators are told to compare with, Ubuntu",
			"5.4.0-42-generic #46-Ubuntu SMP Fri Jul 10 00:24:02 UTC 2020", "5.4.0-42-generic", "ubuntu", Version{}},
		{"the example that operators are told to compare with, Red Hat: no # and no date",
			"4.18.0-193.el8.x86_64 (mockbuild@x86-vm-08.build.eng.bos.redhat.com)", "4.18.0-193.el8.x86_64", "redhat", Version{}},
		{"what RHEL 8 has in /proc/version",
			"Linux version 4.18.0-193.el8.x86_64 (mockbuild@x86-vm-08.build.eng.bos.redhat.com) (gcc version 8.3.1 20191121 (Red Hat 8.3.1-5) (GCC)) #1 SMP Fri Mar 27 14:35:58 UTC 2020\n",
			"4.18.0-193.el8.x86_64", "redhat", Version{}},
		{"Debian's build names the version that its ABI name hides",
			"5.10.0-35-amd64 #1 SMP Debian 5.10.237-1 (2025-05-19)", "5.10.0-35-amd64", "debian", Version{5, 10, 237}},
		{"Debian's newer kernels name the preemption model first",
			"6.1.0-37-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)", "6.1.0-37-amd64", "debian", Version{6, 1, 140}},
		{"Debian's /proc/version",
			"Linux version 4.19.0-27-amd64 (debian-kernel@lists.debian.org) (gcc version 8.3.0 (Debian 8.3.0-6)) #1 SMP Debian 4.19.316-1 (2024-06-25)",
			"4.19.0-27-amd64", "debian", Version{4, 19, 316}},
		{"a mainline kernel that was compiled on Ubuntu names no other version",
			"Linux version 5.3.0 (me@host) (gcc (Ubuntu 9.4.0-1ubuntu1) 9.4.0) #1 SMP Mon Jan 1 00:00:00 UTC 2024", "5.3.0", "ubuntu", Version{}},
		{"the release alone", "5.3.0", "5.3.0", "", Version{}},
	} {
		got, err := ParseUnameRV(test.line)
		if err != nil {
			t.Errorf("%s: %v", test.sentence, err)
			continue
		}
		if got.Release.Text != test.release || got.Vendor != test.vendor || got.Mainline != test.mainline {
			t.Errorf("%s: ParseUnameRV(%q) = %+v; want release %s, vendor %q, mainline %v", test.sentence, test.line, got, test.release, test.vendor, test.mainline)
		}
	}
	if got, err := ParseUnameRV("Darwin Kernel Version 23.0"); err == nil {
		t.Errorf("ParseUnameRV took a line of another system for %+v", got)
	}
}

func TestSignatureVersion(t *testing.T) {
	for in, want := range map[string]Version{
		"Ubuntu 5.4.0-42.46-generic 5.4.44\n":   {5, 4, 44},
		"Ubuntu 4.18.0-20.21-generic 4.18.20\n": {4, 18, 20},
		"":                                      {},
		"something else":                        {},
		"Ubuntu 5.4.0-42.46-generic five":       {},
	} {
		if got := signatureVersion(in); got != want {
			t.Errorf("signatureVersion(%q) = %v, want %v", in, got, want)
		}
	}
}

func FuzzParseUnameRV(f *testing.F) {
	f.Add("5.4.0-42-generic #46-Ubuntu SMP Fri Jul 10 00:24:02 UTC 2020")
	f.Add("4.18.0-193.el8.x86_64 (mockbuild@x86-vm-08.build.eng.bos.redhat.com)")
	f.Add("Linux version 5.10.0-35-amd64 (x) #1 SMP Debian 5.10.237-1 (2025-05-19)")
	f.Add(" Debian  Debian ")
	f.Fuzz(func(t *testing.T, in string) {
		if u, err := ParseUnameRV(in); err == nil && u.Release.Text == "" {
			t.Errorf("ParseUnameRV(%q) found no release and no error: %+v", in, u)
		}
	})
}
