package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// TestNounsInEveryState: whatever state a node is in, each noun ends with a sensible exit code and sentence, in text and
// as JSON, and changes nothing.
func TestNounsInEveryState(t *testing.T) {
	type want struct {
		code bootstrap.ExitCode
		says string
	}
	ok := want{0, ""}
	for _, tc := range []struct {
		name        string
		make        func(n *node)
		status, nat want
		check       want
	}{
		{"before init", func(*node) {}, want{6, "not serving: nothing is set up here"}, want{1, "run `firsthop init`"}, want{0, "this node is ready"}},
		{"after init", func(n *node) { n.init() }, want{0, "serving; proven"}, want{0, "tcp/" + vip4}, want{0, "of this instance are attached"}},
		{"after init without UDP", func(n *node) { n.init("--udp=false") }, want{0, "serving; proven"}, ok, ok},
		{"after a failed init", func(n *node) {
			n.run(initArgs("--endpoints", "127.0.0.1:1,[::1]:1", "--timeout", "50ms")...).exits(bootstrap.ExitProof)
		}, want{6, "not serving"}, want{1, "run `firsthop init`"}, ok},
		{"after a failed init on a node that serves", func(n *node) {
			n.init()
			n.run(initArgs("--endpoints", "127.0.0.1:1,[::1]:1", "--timeout", "50ms")...).exits(bootstrap.ExitProof)
		}, want{0, "serving"}, ok, ok},
		{"after an uninstall", func(n *node) {
			n.init()
			n.run("uninstall", "--force").exits(0)
		}, want{6, "not serving: nothing is set up here"}, want{1, "run `firsthop init`"}, ok},
		{"a map's pin removed by hand", func(n *node) {
			n.init()
			n.without(n.pins().Map(bpf.MapBackend))
		}, want{6, "backend_v1"}, want{1, "backend_v1"}, ok},
		{"a link's pin removed by hand", func(n *node) {
			n.init()
			n.without(n.pins().Links() + "/connect4")
			lab.Await(n.T, "a link without a pin to detach", func() bool { return len(n.attached()) == len(bpf.Hooks())-1 })
		}, want{6, "connect4 is not attached"}, ok, ok},
		{"all pins removed by hand", func(n *node) {
			n.init()
			if err := errors.Join(os.RemoveAll(n.pins().Links()), os.RemoveAll(n.pins().Maps())); err != nil {
				n.Fatal(err)
			}
			lab.Await(n.T, "links without pins to detach", func() bool { return len(n.attached()) == 0 })
		}, want{6, "not serving"}, want{1, "run `firsthop init`"}, ok},
		{"no report of the last run", func(n *node) {
			n.init()
			n.without(filepath.Join(n.RunDir, instance.StatusName))
		}, want{0, "not proven, as far as is known"}, ok, ok},
		{"a damaged report of the last run", func(n *node) {
			n.init()
			if err := os.WriteFile(filepath.Join(n.RunDir, instance.StatusName), []byte(`{"version":`), 0o600); err != nil {
				n.Fatal(err)
			}
		}, want{0, "serving"}, ok, ok},
		{"the cgroup moved away", func(n *node) {
			cgroup, err := n.NewCgroup("old")
			if err != nil {
				n.Fatal(err)
			}
			n.init("--cgroup", cgroup)
		}, want{6, "is attached to the cgroup with id"}, ok, ok},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.serving()
			tc.make(&n)
			before := n.snapshot()
			for noun, want := range map[string]want{"status": tc.status, "nat": tc.nat, "check": tc.check, "units": ok} {
				line := []string{noun}
				if noun == "check" {
					line = append(line, "--service-ips", vips, "--endpoints", servers)
				}
				r := n.run(line...).exits(want.code).says(want.says)
				if strings.Contains(r.stdout, "\x1b") {
					t.Errorf("%s colours what isn't a terminal:\n%s", noun, r.stdout)
				}
				if j := n.run(append(line, "-o", "json")...).exits(want.code); want.code != bootstrap.ExitInternal {
					j.decode(new(any))
				} else {
					var f failure
					if j.decode(&f); f.Error == "" || f.ExitCode != want.code || j.stderr != "" {
						t.Errorf("%s: %+v and %q, want the error in JSON alone", noun, f, j.stderr)
					}
				}
			}
			n.run("discover", "--service-ips", vips, "--endpoints", servers).exits(0).says(server4, "live")
			n.unchanged(before)
		})
	}
}

// TestInitRepairsWhatWasRemovedByHand brings a node back whatever was done to it by hand.
func TestInitRepairsWhatWasRemovedByHand(t *testing.T) {
	n := newNode(t)
	n.serving()
	for _, path := range []string{n.pins().Map(bpf.MapBackend), n.pins().Map(bpf.MapMeta), n.pins().Map(bpf.MapSockRevNat),
		n.pins().Links() + "/connect4", n.pins().Links() + "/getpeername6", n.pins().Links(), n.pins().Maps(), n.pins().Dir,
		filepath.Join(n.RunDir, instance.StatusName), filepath.Join(n.RunDir, instance.LockName), n.RunDir, n.StateDir} {
		t.Run(strings.TrimPrefix(path, n.Dir+"/"), func(t *testing.T) {
			n.T = t
			n.init()
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			n.init()
			n.checkOneOfEach()
			n.checkServes()
		})
	}
}

// TestJSONKeys pins the keys that scripts rely on. A key may come, but none may go or change its meaning.
func TestJSONKeys(t *testing.T) {
	n := newNode(t)
	n.serving()
	const instance = "instance.bpffs instance.cgroup instance.cgroup_id instance.run_dir instance.state_dir "
	const steps = "steps[].step steps[].result steps[].reason steps[].duration_ms steps[].exit_code "
	for _, tc := range []struct {
		line []string
		want string
	}{
		{initArgs(), "version time duration_ms result exit_code after_reboot " + instance + steps + "steps[].changes[] steps[].warnings[] " +
			"services[].name services[].index services[].frontends[] services[].backends[] services[].change services[].owner " +
			"api_servers[].endpoint.address api_servers[].state api_servers[].latency_ms api_servers[].sources[] api_servers[].used " +
			"hooks[].hook hooks[].change hooks[].by hooks[].program_id " +
			"proofs[].service proofs[].asked proofs[].got proofs[].ok proofs[].backend proofs[].socket_cookie proofs[].duration_ms proofs[].attempts proofs[].time"},
		{initArgs("--dry-run"), "dry_run exit_code " + steps},
		{[]string{"status"}, "serving sentence " + instance + "hooks[].hook hooks[].attached hooks[].by hooks[].program_id hooks[].cgroup_id " +
			"table[].index table[].owner table[].frontends[] table[].backends[] table[].counters.translated table[].counters.refused last_init.exit_code last_init.proofs[].ok"},
		{[]string{"nat"}, "[].index [].owner [].frontends[] [].backends[] [].counters.translated [].counters.refused"},
		{[]string{"check", "--service-ips", vips, "--endpoints", servers}, "ready exit_code findings[].check findings[].grade findings[].sentence findings[].exit_code kernel.sentence"},
		{[]string{"discover", "--service-ips", vips, "--endpoints", servers}, "services[].address services[].source endpoints[].address endpoints[].state endpoints[].sources[] endpoints[].latency_ms sources[].source sources[].used"},
		{[]string{"units"}, "statement survives"},
		{[]string{"install", "--service-ips", vips, "--endpoints", servers, "--dry-run"}, "dry_run exit_code " + steps},
		{[]string{"uninstall", "--force", "--dry-run"}, "[].kind [].target"},
	} {
		t.Run(tc.line[0], func(t *testing.T) {
			n.T = t
			var v any
			n.run(append(tc.line, "-o", "json")...).exits(0).decode(&v)
			keys := map[string]bool{}
			collectKeys(v, "", keys)
			for _, want := range strings.Fields(tc.want) {
				if !keys[want] {
					t.Errorf("no key %s", want)
				}
			}
			if t.Failed() {
				t.Log("keys:", sortedKeys(keys))
			}
		})
	}
	var v map[string]any
	plain(t, "version", "-o", "json").exits(0).decode(&v)
	if diff := cmp.Diff([]string{"arch", "go", "table_layout", "version"}, sortedKeys(v)); diff != "" {
		t.Errorf("version's keys (- wanted, + there):\n%s", diff)
	}
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// collectKeys lists the leaves of a JSON value: "a.b" in objects, "a[]" in arrays.
func collectKeys(v any, at string, keys map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			collectKeys(e, strings.TrimPrefix(at+"."+k, "."), keys)
		}
	case []any:
		for _, e := range v {
			collectKeys(e, at+"[]", keys)
		}
	default:
		keys[at] = true
	}
}

// TestJSONEmptyListsAreLists: a list without entries is [], so that scripts can go through it.
func TestJSONEmptyListsAreLists(t *testing.T) {
	n := newNode(t)
	if out := n.run("uninstall", "--force", "--dry-run", "-o", "json").exits(0).stdout; out != "[]\n" {
		t.Errorf("uninstall --dry-run of nothing prints %q, want []", out)
	}
	for _, line := range [][]string{{"status"}, {"check"}, {"units"}, {"discover"}} {
		r := n.run(append(line, "-o", "json")...)
		if null := regexp.MustCompile(`"[a-z_]+": null`).FindString(r.stdout); null != "" {
			t.Errorf("%s prints %s", line[0], null)
		}
	}
}
