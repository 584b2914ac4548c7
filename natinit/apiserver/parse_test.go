package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

func TestParseServices(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want []string
	}{
		"nothing is unset":                           {"", nil},
		"blanks are unset":                           {" \t\n", nil},
		"one":                                        {"10.96.0.1:443", []string{"10.96.0.1:443"}},
		"both families":                              {"10.96.0.1:443,[fd00:96::1]:443", []string{"10.96.0.1:443", "[fd00:96::1]:443"}},
		"blanks around entries":                      {" 10.96.0.1:443 ,\t[fd00:96::1]:443\n", []string{"10.96.0.1:443", "[fd00:96::1]:443"}},
		"one trailing comma":                         {"10.96.0.1:443,", []string{"10.96.0.1:443"}},
		"a trailing comma and blanks":                {"10.96.0.1:443 , ", []string{"10.96.0.1:443"}},
		"duplicates count once, the order stays":     {"10.0.0.2:1,10.0.0.1:1,10.0.0.2:1", []string{"10.0.0.2:1", "10.0.0.1:1"}},
		"IPv4-mapped is IPv4":                        {"[::ffff:10.0.0.1]:443", []string{"10.0.0.1:443"}},
		"IPv4-mapped and IPv4 are duplicates":        {"10.0.0.1:443,[::ffff:a00:1]:443", []string{"10.0.0.1:443"}},
		"spellings of one IPv6 address are the same": {"[FD00::1]:443,[fd00:0:0::1]:443", []string{"[fd00::1]:443"}},
		"the smallest and the largest port":          {"10.0.0.1:1,10.0.0.1:65535", []string{"10.0.0.1:1", "10.0.0.1:65535"}},
		"IPv4 link-local, as in some clouds":         {"169.254.20.10:443", []string{"169.254.20.10:443"}},
		"loopback":                                   {"127.0.0.1:443", []string{"127.0.0.1:443"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseServices(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if s := apitest.Strings(got); !slices.Equal(s, tc.want) {
				t.Errorf("ParseServices(%q) = %q, want %q", tc.in, s, tc.want)
			}
			if len(tc.want) == 0 && got != nil {
				t.Errorf("ParseServices(%q) is empty, not nil", tc.in)
			}
		})
	}
}

func TestParseEndpointsAcceptsNames(t *testing.T) {
	got, err := ParseEndpoints("API.Example.:6443, 10.0.0.1:6443,localhost:6443,my_api:1,api.example:6443, api.example:7443")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"api.example:6443", "10.0.0.1:6443", "localhost:6443", "my_api:1", "api.example:7443"}
	if s := apitest.Strings(got); !slices.Equal(s, want) {
		t.Errorf("got %q, want %q", s, want)
	}
}

// many gives n different entries.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "10.%d.%d.%d:6443,", i>>16&255, i>>8&255, i&255)
	}
	return b.String()
}

func TestWrongEntriesAreQuoted(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for name, tc := range map[string]struct {
		in     string
		entry  string // quoted in the message
		pos    int
		reason string
	}{
		"only a comma":                          {",", `","`, 0, "only separators"},
		"only separators and blanks":            {" , ", `" , "`, 0, "only separators"},
		"many separators":                       {",,,", `",,,"`, 0, "only separators"},
		"an empty entry in the middle":          {"10.0.0.1:1,,10.0.0.2:1", `""`, 2, "is empty"},
		"a blank entry in the middle":           {"10.0.0.1:1, ,10.0.0.2:1", `""`, 2, "is empty"},
		"an empty entry in front":               {",10.0.0.1:1", `""`, 1, "is empty"},
		"two trailing commas":                   {"10.0.0.1:1,,", `""`, 2, "is empty"},
		"no port":                               {"10.0.0.1", `"10.0.0.1"`, 1, "has no port; write 10.0.0.1:6443"},
		"a colon and no port":                   {"10.0.0.1:", `"10.0.0.1:"`, 1, "no port after the colon"},
		"port 0":                                {"10.0.0.2:1,10.0.0.1:0", `"10.0.0.1:0"`, 2, "the port 0"},
		"port 65536":                            {"10.0.0.1:65536", `"10.0.0.1:65536"`, 1, "the largest is 65535"},
		"a port of many digits":                 {"10.0.0.1:99999999999999999999", `"10.0.0.1:99999999999999999999"`, 1, "the largest is 65535"},
		"a port with a plus":                    {"10.0.0.1:+443", `"10.0.0.1:+443"`, 1, "not a number"},
		"a port with a minus":                   {"10.0.0.1:-1", `"10.0.0.1:-1"`, 1, "not a number"},
		"a port with a blank":                   {"10.0.0.1: 443", `"10.0.0.1: 443"`, 1, "not a number"},
		"a hexadecimal port":                    {"10.0.0.1:0x1bb", `"10.0.0.1:0x1bb"`, 1, "not a number"},
		"a port with an underscore":             {"10.0.0.1:1_0", `"10.0.0.1:1_0"`, 1, "not a number"},
		"a service name for a port":             {"10.0.0.1:https", `"10.0.0.1:https"`, 1, "not a number"},
		"a leading zero":                        {"10.0.0.1:0443", `"10.0.0.1:0443"`, 1, "leading zero"},
		"unspecified IPv4":                      {"0.0.0.0:443", `"0.0.0.0:443"`, 1, "unspecified"},
		"unspecified IPv6":                      {"[::]:443", `"[::]:443"`, 1, "unspecified"},
		"unspecified, mapped":                   {"[::ffff:0.0.0.0]:443", `"[::ffff:0.0.0.0]:443"`, 1, "unspecified"},
		"IPv4 multicast":                        {"224.0.0.1:443", `"224.0.0.1:443"`, 1, "multicast"},
		"IPv6 multicast":                        {"[ff02::1]:443", `"[ff02::1]:443"`, 1, "multicast"},
		"broadcast":                             {"255.255.255.255:443", `"255.255.255.255:443"`, 1, "broadcast"},
		"a zone":                                {"[fe80::1%eth0]:443", `"[fe80::1%eth0]:443"`, 1, "zone"},
		"a zone without need":                   {"[fd00::1%eth0]:443", `"[fd00::1%eth0]:443"`, 1, "zone"},
		"IPv6 link-local":                       {"[fe80::1]:443", `"[fe80::1]:443"`, 1, "link-local"},
		"IPv6 without brackets":                 {"fd00::1", `"fd00::1"`, 1, "write [fd00::1]:6443"},
		"IPv6 and port without brackets":        {"fd00::1:443", `"fd00::1:443"`, 1, "without brackets and port; write [fd00::1]:443"},
		"IPv6 and 6443 without brackets":        {"fd00::1:6443", `"fd00::1:6443"`, 1, "write [fd00::1]:6443"},
		"no closing bracket":                    {"[fd00::1:443", `"[fd00::1:443"`, 1, "no closing bracket"},
		"nothing after the bracket":             {"[fd00::1]", `"[fd00::1]"`, 1, "write [fd00::1]:6443"},
		"rubbish after the bracket":             {"[fd00::1]x:443", `"[fd00::1]x:443"`, 1, "after the bracket"},
		"IPv4 in brackets":                      {"[10.0.0.1]:443", `"[10.0.0.1]:443"`, 1, "write 10.0.0.1:443"},
		"a name in brackets":                    {"[api]:443", `"[api]:443"`, 1, "no IPv6 address in the brackets"},
		"empty brackets":                        {"[]:443", `"[]:443"`, 1, "no IPv6 address in the brackets"},
		"no address":                            {":443", `":443"`, 1, "no address"},
		"a URL":                                 {"https://10.0.0.1:6443/", `"https://10.0.0.1:6443/"`, 1, "like 10.0.0.1:6443"},
		"a URL without a port":                  {"https://10.0.0.1", `"https://10.0.0.1"`, 1, "like 10.0.0.1:443"},
		"a prefix length":                       {"10.0.0.0/24:443", `"10.0.0.0/24:443"`, 1, "has a /"},
		"an octet too large":                    {"256.1.1.1:443", `"256.1.1.1:443"`, 1, "looks like an IPv4 address but is none"},
		"three octets":                          {"10.0.1:443", `"10.0.1:443"`, 1, "looks like an IPv4 address but is none"},
		"an octet with a leading zero":          {"010.0.0.1:443", `"010.0.0.1:443"`, 1, "looks like an IPv4 address but is none"},
		"garbage":                               {"!!:443", `"!!:443"`, 1, "neither an IP address nor a host name"},
		"a label that starts with a dash":       {"-a.example:443", `"-a.example:443"`, 1, "neither"},
		"two dots":                              {"a..example:443", `"a..example:443"`, 1, "neither"},
		"a NUL":                                 {"a\x00b:443", `"a\x00b:443"`, 1, "neither"},
		"semicolons between entries":            {"10.0.0.1:443;10.0.0.2:443", `"10.0.0.1:443;10.0.0.2:443"`, 1, "separate addresses by commas"},
		"a blank between entries":               {"10.0.0.1:443 10.0.0.2:443", `"10.0.0.1:443 10.0.0.2:443"`, 1, "separate addresses by commas"},
		"an IPv6 URL without brackets":          {"https://fd00::1", `"https://fd00::1"`, 1, "like [fd00::1]:443"},
		"a very long entry is quoted in part":   {long + ":1", `xxx…"`, 1, "longer than a DNS name"},
		"10,000 entries name count and limit":   {many(10000), `"10.0.3.232:6443"`, 1001, "one of 10000 entries, at most 1000"},
		"10,000 times the same entry":           {strings.Repeat("10.0.0.1:443,", 10000), `"10.0.0.1:443"`, 1001, "one of 10000 entries"},
		"one entry too many":                    {many(1001), `"10.0.3.232:6443"`, 1001, "one of 1001 entries"},
		"two errors: the first one is reported": {"10.0.0.1:0,10.0.0.1:65536", `"10.0.0.1:0"`, 1, "port 0"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseEndpoints(tc.in)
			checkEntryError(t, err, VarEndpoints, tc.entry, tc.pos, tc.reason)
			if got != nil {
				t.Errorf("a value beside the error: %v", got)
			}
			if len(err.Error()) > 500 {
				t.Errorf("message of %d bytes", len(err.Error()))
			}
		})
	}
	// A Service has another port than its servers.
	for in, want := range map[string]string{
		"10.96.0.1": "write 10.96.0.1:443", "fd00:96::1": "write [fd00:96::1]:443", "[fd00:96::1]": "write [fd00:96::1]:443",
		"https://": "like 10.0.0.1:443", "fd00:96::1:6443": "write [fd00:96::1]:6443",
	} {
		if _, err := ParseServices(in); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("ParseServices(%q): %v, want it to end in %q", in, err, want)
		}
	}
	if _, err := ParseEndpoints(many(MaxEndpoints)); err != nil {
		t.Errorf("%d endpoints: %v", MaxEndpoints, err)
	}
	_, err := ParseServices(many(10000))
	checkEntryError(t, err, VarServices, `"10.0.0.64:6443"`, 65, "one of 10000 entries, at most 64")
	_, err = ParseServices("10.0.0.1:443,api.example:443")
	checkEntryError(t, err, VarServices, `"api.example:443"`, 2, "is a host name")
}

func checkEntryError(t *testing.T, err error, variable, entry string, pos int, reason string) {
	t.Helper()
	var ee *EntryError
	if !errors.As(err, &ee) {
		t.Fatalf("got %v, want an EntryError", err)
	}
	if ee.Variable != variable || ee.Position != pos {
		t.Errorf("error is of %s, position %d, want %s, %d", ee.Variable, ee.Position, variable, pos)
	}
	for _, want := range []string{variable, entry, reason} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("message %q lacks %q", err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		services, endpoints string
		variable, entry     string // "" for no error
		reason              string
	}{
		"one family":                         {"10.96.0.1:443", "10.0.0.1:6443", "", "", ""},
		"both families":                      {"10.96.0.1:443,[fd00:96::1]:443", "10.0.0.1:6443,[fd00::1]:6443", "", "", ""},
		"no endpoints: they are discovered":  {"10.96.0.1:443,[fd00:96::1]:443", "", "", "", ""},
		"no services: they are discovered":   {"", "10.0.0.1:6443", "", "", ""},
		"a name stands for either family":    {"10.96.0.1:443,[fd00:96::1]:443", "api.example:6443", "", "", ""},
		"a name beside one family":           {"10.96.0.1:443,[fd00:96::1]:443", "api.example:6443,10.0.0.1:6443", "", "", ""},
		"an IPv6 endpoint without Service":   {"10.96.0.1:443", "10.0.0.1:6443,[fd00::1]:6443", VarEndpoints, `"[fd00::1]:6443"`, "has no IPv6 address"},
		"an IPv4 endpoint without Service":   {"[fd00:96::1]:443", "[fd00::1]:6443,10.0.0.1:6443", VarEndpoints, `"10.0.0.1:6443"`, "has no IPv4 address"},
		"an IPv6 Service without endpoint":   {"10.96.0.1:443,[fd00:96::1]:443", "10.0.0.1:6443", VarServices, `"[fd00:96::1]:443"`, "has no IPv6 address"},
		"an IPv4 Service without endpoint":   {"10.96.0.1:443,[fd00:96::1]:443", "[fd00::1]:6443", VarServices, `"10.96.0.1:443"`, "has no IPv4 address"},
		"the Service itself as endpoint":     {"10.96.0.1:443", "10.0.0.1:6443,10.96.0.1:443", VarEndpoints, `"10.96.0.1:443"`, "is the Service entry"},
		"the Service's address, other port":  {"127.0.0.1:443", "127.0.0.1:6443", "", "", ""},
		"the Service itself, spelt as IPv6":  {"10.96.0.1:443", "[::ffff:10.96.0.1]:443", VarEndpoints, `"10.96.0.1:443"`, "is the Service entry"},
		"a name does not excuse a bad entry": {"10.96.0.1:443", "api.example:6443,[fd00::1]:6443", VarEndpoints, `"[fd00::1]:6443"`, "has no IPv6 address"},
	} {
		t.Run(name, func(t *testing.T) {
			services, err := ParseServices(tc.services)
			if err != nil {
				t.Fatal(err)
			}
			endpoints, err := ParseEndpoints(tc.endpoints)
			if err != nil {
				t.Fatal(err)
			}
			err = Validate(services, endpoints)
			if tc.variable == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkEntryError(t, err, tc.variable, tc.entry, 0, tc.reason)
		})
	}
}

func addSeeds(f *testing.F) {
	for _, s := range []string{"", ",", " , ", "10.96.0.1:443", "10.96.0.1:443,[fd00:96::1]:443,", "a:1,b:2", "[::ffff:1.2.3.4]:5", "https://x:1",
		"[fe80::1%eth0]:443", "1.2.3.4:0", "1.2.3.4:65536", "256.0.0.1:1", "10.0.0.1:443,,", "api.example.:6443"} {
		f.Add(s)
	}
}

// checkList holds for every accepted value: it is bounded, has no duplicates,
// and parses to itself when written down again.
func checkList[T interface {
	comparable
	fmt.Stringer
}](t *testing.T, in string, got []T, most int, parse func(string) ([]T, error)) {
	if len(got) == 0 {
		if got != nil || strings.TrimSpace(in) != "" {
			t.Fatalf("%q: accepted, but empty", in)
		}
		return
	}
	seen := map[T]bool{}
	for _, v := range got {
		if seen[v] {
			t.Fatalf("%q: %s twice", in, v)
		}
		seen[v] = true
	}
	if len(got) > most {
		t.Fatalf("%d entries", len(got))
	}
	again, err := parse(strings.Join(apitest.Strings(got), ","))
	if err != nil || !slices.Equal(again, got) {
		t.Fatalf("%q: %v parses to %v, %v", in, got, again, err)
	}
}

func FuzzParseServices(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ParseServices(in)
		var ee *EntryError
		if err != nil {
			if !errors.As(err, &ee) || ee.Reason == "" || ee.Variable != VarServices {
				t.Fatalf("%q: error %#v", in, err)
			}
			return
		}
		checkList(t, in, got, MaxServices, ParseServices)
		for _, a := range got {
			apitest.CheckAddr(t, a)
		}
	})
}

func FuzzParseEndpoints(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ParseEndpoints(in)
		var ee *EntryError
		if err != nil {
			if !errors.As(err, &ee) || ee.Reason == "" || ee.Variable != VarEndpoints {
				t.Fatalf("%q: error %#v", in, err)
			}
			return
		}
		checkList(t, in, got, MaxEndpoints, ParseEndpoints)
		for _, e := range got {
			if e.Resolved() {
				apitest.CheckAddr(t, e.Addr)
			} else if e.Host == "" || e.Addr.Port() == 0 {
				t.Fatalf("%q: accepted %#v", in, e)
			}
			b, err := json.Marshal(e)
			var back Endpoint
			if err == nil {
				err = json.Unmarshal(b, &back)
			}
			if err != nil || back != e {
				t.Fatalf("%#v is %s in JSON, and back %#v, %v", e, b, back, err)
			}
		}
	})
}
