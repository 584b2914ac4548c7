package kernel

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRelease(t *testing.T) {
	v := func(major, minor, patch int) Version { return Version{major, minor, patch} }
	for _, test := range []struct {
		sentence string
		in       string
		want     Release // Text is filled in
	}{
		{"Ubuntu 20.04's first kernel: the ABI number 42 is a build, generic the flavour", "5.4.0-42-generic",
			Release{Version: v(5, 4, 0), Build: []int{42}, Flavour: "generic"}},
		{"RHEL 8.2's first kernel has one build number and no minor release in its tag", "4.18.0-193.el8.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{193}, Flavour: "el8", EL: 8}},
		{"RHEL 8.1's kernel differs from 8.2's in the build number only", "4.18.0-147.el8.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{147}, Flavour: "el8", EL: 8}},
		{"an update of RHEL 8.2 has three build numbers, and el8_2 names the minor release", "4.18.0-193.1.2.el8_2.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{193, 1, 2}, Flavour: "el8", EL: 8, ELMinor: 2}},
		{"Ubuntu's 4.18 looks like RHEL's up to the dash and is not an Enterprise Linux", "4.18.0-20-generic",
			Release{Version: v(4, 18, 0), Build: []int{20}, Flavour: "generic"}},
		{"Debian 10: the ABI name, whose patch level is always 0", "4.19.0-27-amd64",
			Release{Version: v(4, 19, 0), Build: []int{27}, Flavour: "amd64"}},
		{"a mainline release has nothing but its version", "5.2.21", Release{Version: v(5, 2, 21)}},
		{"the floor", "5.3.0", Release{Version: v(5, 3, 0)}},
		{"RHEL 9.0", "5.14.0-70.13.1.el9_0.x86_64",
			Release{Version: v(5, 14, 0), Build: []int{70, 13, 1}, Flavour: "el9", EL: 9}},
		{"Amazon Linux 2 with its old kernel: amzn2 is no Enterprise Linux tag", "4.14.281-212.502.amzn2.x86_64",
			Release{Version: v(4, 14, 281), Build: []int{212, 502}, Flavour: "amzn2"}},
		{"Amazon Linux 2 with a newer kernel", "5.10.112-108.499.amzn2.x86_64",
			Release{Version: v(5, 10, 112), Build: []int{108, 499}, Flavour: "amzn2"}},
		{"Oracle's UEK on Oracle Linux 8 is built for EL 8 but is not RHEL's kernel", "5.4.17-2136.307.3.el8uek.x86_64",
			Release{Version: v(5, 4, 17), Build: []int{2136, 307, 3}, Flavour: "el8uek", EL: 8, UEK: true}},
		{"a release candidate", "6.18.0-rc3", Release{Version: v(6, 18, 0), RC: 3}},
		{"a release candidate as mainline names it, with the plus of a changed tree", "6.18-rc3+", Release{Version: v(6, 18, 0), RC: 3}},
		{"Fedora's release candidate has rc3 among its build numbers", "6.8.0-0.rc3.26.fc40.x86_64",
			Release{Version: v(6, 8, 0), RC: 3, Build: []int{0, 26}, Flavour: "fc40"}},
		{"Debian 13's name has its release behind a plus sign", "6.12.107+deb13-cloud-amd64",
			Release{Version: v(6, 12, 107), Local: "deb13", Flavour: "cloud-amd64"}},
		{"Debian 12's cloud kernel", "6.1.0-50-cloud-amd64", Release{Version: v(6, 1, 0), Build: []int{50}, Flavour: "cloud-amd64"}},
		{"Debian 11's cloud kernel", "5.10.0-32-cloud-amd64", Release{Version: v(5, 10, 0), Build: []int{32}, Flavour: "cloud-amd64"}},
		{"Debian on arm64", "6.1.0-18-cloud-arm64", Release{Version: v(6, 1, 0), Build: []int{18}, Flavour: "cloud-arm64"}},
		{"Raspberry Pi OS", "6.6.20+rpt-rpi-v8", Release{Version: v(6, 6, 20), Local: "rpt", Flavour: "rpi-v8"}},
		{"Ubuntu on GKE", "5.15.0-1034-gke", Release{Version: v(5, 15, 0), Build: []int{1034}, Flavour: "gke"}},
		{"Ubuntu on Azure", "5.4.0-1021-azure", Release{Version: v(5, 4, 0), Build: []int{1021}, Flavour: "azure"}},
		{"Ubuntu on AWS with arm64 has no machine in its name", "5.15.0-1019-aws", Release{Version: v(5, 15, 0), Build: []int{1019}, Flavour: "aws"}},
		{"a micro VM: letters and digits after the dash are a name", "6.18.44-fc-v657", Release{Version: v(6, 18, 44), Flavour: "fc-v657"}},
		{"SLES 15 SP3 counts its builds in three parts", "5.3.18-150300.59.93-default",
			Release{Version: v(5, 3, 18), Build: []int{150300, 59, 93}, Flavour: "default"}},
		{"Container-Optimized OS ends in a plus sign", "5.15.133+", Release{Version: v(5, 15, 133)}},
		{"Flatcar", "5.15.63-flatcar", Release{Version: v(5, 15, 63), Flavour: "flatcar"}},
		{"Talos", "6.1.58-talos", Release{Version: v(6, 1, 58), Flavour: "talos"}},
		{"Bottlerocket says the version only", "5.10.205", Release{Version: v(5, 10, 205)}},
		{"Rocky 8.8 keeps RHEL's numbers", "4.18.0-477.10.1.el8_8.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{477, 10, 1}, Flavour: "el8", EL: 8, ELMinor: 8}},
		{"AlmaLinux 8.9", "4.18.0-513.9.1.el8_9.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{513, 9, 1}, Flavour: "el8", EL: 8, ELMinor: 9}},
		{"Rocky 8 on arm64", "4.18.0-553.el8_10.aarch64",
			Release{Version: v(4, 18, 0), Build: []int{553}, Flavour: "el8", EL: 8, ELMinor: 10}},
		{"CentOS Plus puts words behind the tag", "4.18.0-240.1.1.el8_3.centos.plus.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{240, 1, 1}, Flavour: "el8", EL: 8, ELMinor: 3}},
		{"CentOS 7", "3.10.0-1160.71.1.el7.x86_64", Release{Version: v(3, 10, 0), Build: []int{1160, 71, 1}, Flavour: "el7", EL: 7}},
		{"RHEL 8's real-time kernel has words between the build and the tag", "4.18.0-193.rt13.51.el8.x86_64",
			Release{Version: v(4, 18, 0), Build: []int{193}, Flavour: "el8", EL: 8}},
		{"RHEL 9's debug kernel names the variant last", "5.14.0-427.el9.x86_64+debug",
			Release{Version: v(5, 14, 0), Build: []int{427}, Flavour: "el9", EL: 9, Local: "debug"}},
		{"RHEL 9 with 64 KiB pages", "5.14.0-427.el9.aarch64+64k",
			Release{Version: v(5, 14, 0), Build: []int{427}, Flavour: "el9", EL: 9, Local: "64k"}},
		{"elrepo's mainline kernel for EL 8", "6.1.1-1.el8.elrepo.x86_64", Release{Version: v(6, 1, 1), Build: []int{1}, Flavour: "el8", EL: 8}},
		{"Fedora", "6.5.6-300.fc39.x86_64", Release{Version: v(6, 5, 6), Build: []int{300}, Flavour: "fc39"}},
		{"WSL 2 has a fourth number", "5.15.90.1-microsoft-standard-WSL2",
			Release{Version: v(5, 15, 90), Extra: []int{1}, Flavour: "microsoft-standard-WSL2"}},
		{"Azure Linux has a fourth number and a build", "6.6.35.1-5.azl3",
			Release{Version: v(6, 6, 35), Extra: []int{1}, Build: []int{5}, Flavour: "azl3"}},
		{"Alpine", "6.6.8-0-virt", Release{Version: v(6, 6, 8), Build: []int{0}, Flavour: "virt"}},
		{"Arch", "6.6.8-arch1-1", Release{Version: v(6, 6, 8), Flavour: "arch1-1"}},
		{"Proxmox", "6.8.4-2-pve", Release{Version: v(6, 8, 4), Build: []int{2}, Flavour: "pve"}},
		{"gVisor and other sandboxes say 4.4.0", "4.4.0", Release{Version: v(4, 4, 0)}},
		{"4.19 without anything", "4.19.0", Release{Version: v(4, 19, 0)}},
		{"a numeric name does not come apart where it is too long for the version", "5.10.0-0.deb10.16-amd64",
			Release{Version: v(5, 10, 0), Build: []int{0}, Flavour: "deb10.16-amd64"}},
	} {
		test.want.Text = test.in
		got, err := ParseRelease(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.sentence, err)
			continue
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s:\nParseRelease(%q) (-want +got)\n%s", test.sentence, test.in, diff)
		}
	}
}

func TestParseReleaseRefuses(t *testing.T) {
	for sentence, in := range map[string]string{
		"nothing":                              "",
		"a word":                               "generic",
		"one number says too little":           "6",
		"a version glued to a word":            "5.3rc1",
		"a whole line belongs to ParseUnameRV": "5.4.0-42-generic #46-Ubuntu",
		"a line break":                         "5.4.0\n",
		"a number beyond any kernel's":         "5.99999999999999999999",
		"a build number beyond any kernel's":   "5.4.0-99999999999999999999-generic",
		"more than uname can say":              "5.4.0-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
		"a negative version":                   "-5.4",
	} {
		if got, err := ParseRelease(in); !errors.Is(err, errRelease) {
			t.Errorf("%s: ParseRelease(%q) = %+v, %v; want an error", sentence, in, got, err)
		} else if diff := cmp.Diff(Release{}, got); diff != "" {
			t.Errorf("%s: ParseRelease(%q) gives half a release beside its error: %+v", sentence, in, got)
		}
	}
}

func TestCompareNumbers(t *testing.T) {
	ascending := [][]int{{9}, {80}, {147}, {193}, {193, 1, 2}, {193, 6, 3}, {193, 14, 2}, {240}, {240, 1, 1}, {1160}}
	for i := range ascending {
		for j := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := compareNumbers(ascending[i], ascending[j]); got != want {
				t.Errorf("compareNumbers(%v, %v) = %d, want %d", ascending[i], ascending[j], got, want)
			}
		}
	}
}

func FuzzParseRelease(f *testing.F) {
	for _, seed := range []string{"5.4.0-42-generic", "4.18.0-193.1.2.el8_2.x86_64", "6.18.0-rc3", "6.12.107+deb13-cloud-amd64",
		"5.15.90.1-microsoft-standard-WSL2", "5.4.17-2136.307.3.el8uek.x86_64", "6", "5.4.0-", "5.4.0-el", "5.4.0+", "5.4.0-rc", "1.2-.el8_", "4.18.0-99999999999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParseRelease(in)
		if err != nil {
			if !errors.Is(err, errRelease) {
				t.Errorf("ParseRelease(%q): %v is not errRelease", in, err)
			}
			return
		}
		if r.Text != in {
			t.Errorf("ParseRelease(%q) says it was given %q", in, r.Text)
		}
		if r.Version.Compare(Version{}) < 0 || r.RC < 0 || r.EL < 0 || r.ELMinor < 0 {
			t.Errorf("ParseRelease(%q) has a negative number: %+v", in, r)
		}
		for _, n := range append(append([]int{}, r.Build...), r.Extra...) {
			if n < 0 {
				t.Errorf("ParseRelease(%q) has a negative number: %+v", in, r)
			}
		}
		again, err := ParseRelease(r.String())
		if err != nil || !cmp.Equal(r, again) {
			t.Errorf("ParseRelease(%q) is not stable: %+v, then %+v, %v", in, r, again, err)
		}
	})
}
