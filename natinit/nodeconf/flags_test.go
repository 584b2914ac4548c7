package nodeconf

import (
	"strings"
	"testing"
)

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
