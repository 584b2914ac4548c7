package kernel

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// hostOf is a host as uname shows it, with a process that may do everything.
func hostOf(t *testing.T, line string) Host {
	t.Helper()
	u, err := ParseUnameRV(line)
	if err != nil {
		t.Fatal(err)
	}
	return Host{
		Release: u.Release, Mainline: u.Mainline, Vendor: u.Vendor, Uname: u.Build, Lockdown: "none",
		Privileges: privileges.Privileges{Capabilities: 1<<41 - 1, LastCap: 40},
	}
}

// all answers every probe with yes, but for the given ones.
func all(except ...Result) []Result {
	var results []Result
	for _, p := range Probes() {
		r := Result{Feature: p.Feature, Answer: Yes}
		for _, e := range except {
			if e.Name == p.Name {
				e.Feature = p.Feature
				r = e
			}
		}
		results = append(results, r)
	}
	return results
}

func no(name string) Result {
	return Result{Feature: Feature{Name: name}, Answer: No, Detail: "not supported"}
}

func noRights(name string) Result {
	return Result{Feature: Feature{Name: name}, Answer: Unknown, NoRights: true, Detail: "load a program: operation not permitted"}
}

func failed(name string) Result {
	return Result{Feature: Feature{Name: name}, Answer: Unknown, Detail: "create a map: cannot allocate memory"}
}

// Every real release, with every probe passing: the version alone decides.
func TestJudgeVersions(t *testing.T) {
	for _, test := range []struct {
		sentence, line string
		accepted       bool
		family         string
	}{
		{"Ubuntu 20.04's first kernel is accepted: 5.4 is above 5.3", "5.4.0-42-generic", true, "mainline"},
		{"RHEL 8.2's first kernel is accepted: it is the floor", "4.18.0-193.el8.x86_64", true, "RHEL 8"},
		{"RHEL 8.1's kernel is refused: build 147 is below 193", "4.18.0-147.el8.x86_64", false, "RHEL 8"},
		{"an update of RHEL 8.1 is refused: 147.94.1 is below 193, though it is longer", "4.18.0-147.94.1.el8_1.x86_64", false, "RHEL 8"},
		{"an update of RHEL 8.2 is accepted: 193.1.2 is above 193", "4.18.0-193.1.2.el8_2.x86_64", true, "RHEL 8"},
		{"RHEL 8.3 is accepted: 240 is above 193", "4.18.0-240.el8.x86_64", true, "RHEL 8"},
		{"RHEL 8.0 is refused: 80 is below 193 as a number, though above it as text", "4.18.0-80.el8.x86_64", false, "RHEL 8"},
		{"Ubuntu's 4.18 is refused: it is not RHEL, and build 20 means nothing", "4.18.0-20-generic", false, "mainline"},
		{"Ubuntu's 4.18 is refused whatever its ABI number", "4.18.0-1020-aws", false, "mainline"},
		{"Debian 10 is refused: 4.19 is below 5.3", "4.19.0-27-amd64", false, "mainline"},
		{"4.19.0 is refused", "4.19.0", false, "mainline"},
		{"mainline's 4.18 is refused: only Red Hat's has the hooks", "4.18.0", false, "mainline"},
		{"5.2.21 is refused: the last of the series before the floor", "5.2.21", false, "mainline"},
		{"5.3.0 is accepted: it is the floor", "5.3.0", true, "mainline"},
		{"5.3.0-rc8 is refused: a release candidate is before its release", "5.3.0-rc8", false, "mainline"},
		{"5.4.0-rc1 is accepted: it is after 5.3", "5.4.0-rc1", true, "mainline"},
		{"RHEL 9.0 is accepted by its version", "5.14.0-70.13.1.el9_0.x86_64", true, "mainline"},
		{"Amazon Linux 2's 4.14 is refused", "4.14.281-212.502.amzn2.x86_64", false, "mainline"},
		{"Amazon Linux 2's 5.10 is accepted", "5.10.112-108.499.amzn2.x86_64", true, "mainline"},
		{"Oracle's UEK 6 is accepted by its version 5.4, not by RHEL's rule", "5.4.17-2136.307.3.el8uek.x86_64", true, "mainline"},
		{"Oracle's UEK 5 is refused: its build 1902 is no build of RHEL's", "4.14.35-1902.300.11.el7uek.x86_64", false, "mainline"},
		{"a UEK of 4.18 is not RHEL's kernel", "4.18.0-2000.el8uek.x86_64", false, "mainline"},
		{"6.18.0-rc3 is accepted", "6.18.0-rc3", true, "mainline"},
		{"Debian 13 is accepted", "6.12.107+deb13-cloud-amd64", true, "mainline"},
		{"SLES 15 SP3 is accepted: 5.3.18", "5.3.18-150300.59.93-default", true, "mainline"},
		{"CentOS 7 is refused, whatever its build", "3.10.0-1160.71.1.el7.x86_64", false, "mainline"},
		{"elrepo's 4.18 for EL 8 is mainline's: refused", "4.18.20-1000.el8.elrepo.x86_64", false, "mainline"},
		{"elrepo's 6.1 for EL 8 is accepted by its version", "6.1.1-1.el8.elrepo.x86_64", true, "mainline"},
		{"the example that operators are told to compare with, Ubuntu", "5.4.0-42-generic #46-Ubuntu SMP Fri Jul 10 00:24:02 UTC 2020", true, "Ubuntu"},
		{"the example that operators are told to compare with, Red Hat", "4.18.0-193.el8.x86_64 (mockbuild@x86-vm-08.build.eng.bos.redhat.com)", true, "RHEL 8"},
		{"a rebuild with a tag of its own, by Red Hat's compiler, counts as RHEL", "4.18.0-348.20.an8.x86_64 (b@h) (gcc version 8.5.0 (Red Hat 8.5.0-10) (GCC)) #1 SMP", true, "RHEL 8"},
		{"Ubuntu's 4.18 compiled by anybody is refused", "4.18.0-300-generic (b@h) (gcc version 8.5.0 (Red Hat 8.5.0-10) (GCC)) #1 SMP", false, "mainline"},
		{"4.18.0-300.generic by Ubuntu is refused: the builder says whose it is", "4.18.0-300.generic #300-Ubuntu SMP", false, "Ubuntu"},
	} {
		host := hostOf(t, test.line)
		r := Judge(host, all(), Config{})
		if (r.Verdict == Supported) != test.accepted || r.Floor.Family != test.family || (r.Err() == nil) != test.accepted {
			t.Errorf("%s: %s is %s by the floor of %s; want accepted %v, %s\n%s", test.sentence, test.line, r.Verdict, r.Floor.Family, test.accepted, test.family, r.Sentence)
		}
		if !test.accepted && (!errors.Is(r.Err(), ErrUnsupported) || !strings.Contains(r.Sentence, "below the minimum")) {
			t.Errorf("%s: the refusal is %v", test.sentence, r.Err())
		}
		ignored := Judge(host, all(), Config{IgnoreVersion: true})
		if ignored.Verdict != Supported {
			t.Errorf("%s: with every probe passing and the version ignored it is %s", test.sentence, ignored.Verdict)
		}
		if !test.accepted && (len(ignored.Reasons) != 1 || !strings.Contains(ignored.Sentence, "accepted")) {
			t.Errorf("%s: the exception is not told: %q %q", test.sentence, ignored.Sentence, ignored.Reasons)
		}
	}
}

func TestJudgeKnowsRHELByItsDistribution(t *testing.T) {
	host := hostOf(t, "4.18.0-348.7.1.custom.x86_64")
	if r := Judge(host, all(), Config{}); r.Verdict != Unsupported {
		t.Errorf("a 4.18 by nobody knows whom is %s", r.Verdict)
	}
	host.Distribution = Distribution{ID: "rocky", IDLike: []string{"rhel", "centos", "fedora"}}
	if r := Judge(host, all(), Config{}); r.Verdict != Supported || !strings.Contains(r.Floor.Why, "os-release") {
		t.Errorf("the same on Rocky Linux is %s, %+v", r.Verdict, r.Floor)
	}
	for _, line := range []string{"4.18.0-300-generic #300-Ubuntu SMP", "4.18.0-300.generic #300-Ubuntu SMP"} {
		ubuntu := hostOf(t, line)
		ubuntu.Distribution = Distribution{ID: "rhel"} // the image's, not the host's
		if r := Judge(ubuntu, all(), Config{}); r.Verdict != Unsupported {
			t.Errorf("%s under a RHEL image is %s", line, r.Verdict)
		}
	}
}

func TestJudge(t *testing.T) {
	const good, old, rhel = "5.15.0", "4.19.0-27-amd64 #1 SMP Debian 4.19.316-1 (2024-06-25)", "4.18.0-193.el8.x86_64"
	for _, test := range []struct {
		sentence string
		line     string
		results  []Result
		config   Config
		want     Verdict
		says     []string // in the sentence and the reasons
	}{
		{"new enough and all passes: supported", good, all(), Config{}, Supported, []string{"5.15.0 is supported", "5.3"}},
		{"an optional feature is missing: supported, and the loss is told", good, all(no(FeatureLink)), Config{}, Supported, nil},
		{"an optional feature could not be asked for: supported", good, all(noRights(FeatureTCX)), Config{}, Supported, nil},
		{"new enough but a needed feature is missing: refused, named, with its version", good, all(no(FeatureRecvmsg4)), Config{}, Unsupported,
			[]string{"recvmsg4", "since 5.2", "new enough", "UDP replies"}},
		{"to ignore the version does not help against a missing feature", good, all(no(FeatureRecvmsg4)), Config{IgnoreVersion: true}, Unsupported, []string{"recvmsg4"}},
		{"too old, all passes: refused, and told that it could be ignored", old, all(), Config{}, Unsupported, []string{"below the minimum", "5.3", "--ignore-kernel-version"}},
		{"too old and ignored: supported, and told", old, all(), Config{IgnoreVersion: true}, Supported, []string{"accepted", "--ignore-kernel-version"}},
		{"too old and a needed feature missing: refused for both", old, all(no(FeatureRecvmsg6)), Config{}, Unsupported, []string{"below the minimum", "recvmsg6"}},
		{"too old, ignored, and a needed feature missing: refused", old, all(no(FeatureRecvmsg6)), Config{IgnoreVersion: true}, Unsupported, []string{"recvmsg6", "ignored"}},
		{"no rights: not supported, but not refused either", good, all(noRights(FeatureConnect4)), Config{}, NoRights, []string{"could not tell", "connect4", "lack of rights"}},
		{"no rights for one and no support for another: refused", good, all(noRights(FeatureConnect4), no(FeatureHash)), Config{}, Unsupported, []string{"map-hash"}},
		{"too old without rights: refused, for rights would not help", old, all(noRights(FeatureConnect4)), Config{}, Unsupported, []string{"below the minimum"}},
		{"too old, ignored, without rights: not known", old, all(noRights(FeatureConnect4)), Config{IgnoreVersion: true}, NoRights, []string{"lack of rights"}},
		{"a probe that failed for want of memory: not known, and not for rights", good, all(failed(FeatureHash)), Config{}, Undetermined, []string{"could not tell", "cannot allocate memory"}},
		{"rights come first where both are missing", good, all(failed(FeatureHash), noRights(FeatureConnect4)), Config{}, NoRights, []string{"map-hash", "connect4"}},
		{"a needed probe that did not run is not taken for granted", good, all()[1:], Config{}, Undetermined, []string{"bpf-syscall", "did not run"}},
		{"nothing ran at all", good, nil, Config{}, Undetermined, []string{"did not run"}},
		{"RHEL at the floor with a needed feature missing: refused, and RHEL is named", rhel, all(no(FeatureSendmsg4)), Config{}, Unsupported, []string{"sendmsg4", "RHEL 8", "4.18.0-193"}},
	} {
		r := Judge(hostOf(t, test.line), test.results, test.config)
		if r.Verdict != test.want {
			t.Errorf("%s: %s, want %s (%s)", test.sentence, r.Verdict, test.want, r.Sentence)
		}
		said := r.Sentence + "\n" + strings.Join(r.Reasons, "\n")
		for _, word := range test.says {
			if !strings.Contains(said, word) {
				t.Errorf("%s: %q is not said in:\n%s", test.sentence, word, said)
			}
		}
		for verdict, sentinel := range map[Verdict]error{Unsupported: ErrUnsupported, NoRights: ErrNoRights, Undetermined: ErrUndetermined} {
			if errors.Is(r.Err(), sentinel) != (r.Verdict == verdict) {
				t.Errorf("%s: %s has the error %v", test.sentence, r.Verdict, r.Err())
			}
		}
	}
	r := Judge(hostOf(t, good), all(no(FeatureLink)), Config{})
	if len(r.Degradations) != 1 || !strings.Contains(r.Degradations[0], "cgroup-link") || !strings.Contains(r.Degradations[0], "5.8") {
		t.Errorf("the loss of links is told as %q", r.Degradations)
	}
	if r.Features().Link || !r.Features().Batch {
		t.Errorf("without links the features are %+v", r.Features())
	}
}

func TestJudgeRefusesAnUnreadableRelease(t *testing.T) {
	host := inspect(t.TempDir(), "mystery", "#1", "x86_64", nil)
	r := Judge(host, all(), Config{})
	if r.Verdict != Unsupported || !strings.Contains(r.Sentence, "mystery") {
		t.Errorf("an unreadable release: %s, %s", r.Verdict, r.Sentence)
	}
	if r := Judge(host, all(), Config{IgnoreVersion: true}); r.Verdict != Supported {
		t.Errorf("an unreadable release that is ignored: %s, %s", r.Verdict, r.Sentence)
	}
}

func TestAnomaly(t *testing.T) {
	anomalyOf := func(h Host, name string) string {
		r := Judge(h, all(no(name)), Config{})
		i := slices.IndexFunc(r.Results, func(r Result) bool { return r.Name == name })
		return r.Results[i].Anomaly
	}
	host := hostOf(t, "5.15.0")
	if got := anomalyOf(host, FeatureGetpeername); got != "missing although 5.15 has it since 5.8: a build without CONFIG_CGROUP_BPF" {
		t.Errorf("getpeername on 5.15: %q", got)
	}
	host.Lockdown, host.Privileges.Seccomp = "integrity", true
	if got := anomalyOf(host, FeatureGetpeername); !strings.Contains(got, "lockdown (now: integrity)") || !strings.Contains(got, "seccomp") {
		t.Errorf("getpeername on 5.15 under lockdown and seccomp: %q", got)
	}
	for _, test := range []struct {
		sentence, line, feature string
		strange                 bool
	}{
		{"5.15 need not have set_retval at connect, which is of 6.1", "5.15.0", FeatureSetRetval, false},
		{"6.1 must have it", "6.1.0", FeatureSetRetval, true},
		{"6.1-rc1 need not have it", "6.1.0-rc1", FeatureSetRetval, false},
		{"RHEL 8.2 need not have links", "4.18.0-193.el8.x86_64", FeatureLink, false},
		{"RHEL 8.9 must have links", "4.18.0-513.9.1.el8_9.x86_64", FeatureLink, true},
		{"RHEL 8.2 must have recvmsg4", "4.18.0-193.el8.x86_64", FeatureRecvmsg4, true},
		{"RHEL 8.1 need not have recvmsg4", "4.18.0-147.el8.x86_64", FeatureRecvmsg4, false},
		{"RHEL 8.9 need not have tcx", "4.18.0-513.9.1.el8_9.x86_64", FeatureTCX, false},
		{"elrepo's 4.18.20 must not be measured by RHEL's builds", "4.18.20-1000.el8.elrepo.x86_64", FeatureRecvmsg4, false},
		{"Ubuntu's 4.18 must not be measured by RHEL's builds", "4.18.0-1020-aws", FeatureRecvmsg4, false},
	} {
		if got := anomalyOf(hostOf(t, test.line), test.feature); (got != "") != test.strange {
			t.Errorf("%s: the anomaly is %q", test.sentence, got)
		}
	}
	r := Judge(hostOf(t, "6.1.0"), all(Result{Feature: Feature{Name: FeatureLink}, Answer: No, Forbidden: true}), Config{})
	for _, result := range r.Results {
		if result.Anomaly != "" {
			t.Errorf("a forbidden feature is called an anomaly: %s", result.Anomaly)
		}
	}
}

func TestReportNote(t *testing.T) {
	m := Memlock{Needed: true, Before: 65536, Error: "set RLIMIT_MEMLOCK: operation not permitted"}
	for _, test := range []struct {
		sentence string
		missing  []string
		verdict  Verdict
		says     []string
		saysNot  string
	}{
		{"with all capabilities but this one, no security module is suspected", nil, NoRights, []string{"CAP_SYS_RESOURCE"}, "SELinux"},
		{"with others missing too, all are named", []string{"CAP_BPF"}, NoRights, []string{"CAP_SYS_RESOURCE", "CAP_BPF"}, "SELinux"},
		{"a kernel that is supported all the same needs no advice", nil, Supported, nil, "CAP_SYS_RESOURCE"},
	} {
		r := Report{Verdict: test.verdict, Host: Host{Privileges: privileges.Privileges{LastCap: 40, Missing: test.missing}}}
		if r.Verdict == NoRights {
			r.Advice = r.Host.Privileges.Advice()
		}
		r.Sentence = "it is so: " + r.Advice
		r.note(m)
		for _, says := range test.says {
			if !strings.Contains(r.Sentence, says) || !strings.Contains(r.Advice, says) {
				t.Errorf("%s: %q and %q, want %q in both", test.sentence, r.Sentence, r.Advice, says)
			}
		}
		if strings.Contains(r.Sentence+r.Advice, test.saysNot) {
			t.Errorf("%s: %q, want nothing of %q", test.sentence, r.Sentence, test.saysNot)
		}
	}
}
