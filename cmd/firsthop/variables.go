package main

import (
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// envPrefix begins the name of every variable of firsthop's own.
const envPrefix = "FIRSTHOP_"

// testVariable matches those that the tests of this repository use, whose processes run this program.
var testVariable = regexp.MustCompile(`^` + envPrefix + `(TEST|VM|LAB)_`)

// checkVariables refuses a variable that no command has, like an unknown flag: a typing error must not mean the default.
func checkVariables(e env, commands []*cli.Command) error {
	known := variables(commands)
	for _, kv := range e.environ() {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case !strings.HasPrefix(name, envPrefix), strings.TrimSpace(value) == "":
		case slices.Contains(known, name), testVariable.MatchString(name), isServiceLink(name, value):
		default:
			return usagef("unknown environment variable %s: %sunset it, `firsthop COMMAND --help` lists those that there are", name, didYouMean(nearestVariable(name, known)))
		}
	}
	return nil
}

// nearestVariable gives the variable that a mistyped one probably means. The prefix, which all have, makes none of them
// alike; and two flags have a variable of Kubernetes' own.
func nearestVariable(name string, known []string) string {
	meant := map[string]string{"SERVICE_IPS": apiserver.VarServices, "ENDPOINTS": apiserver.VarEndpoints}
	for _, k := range known {
		if short, own := strings.CutPrefix(k, envPrefix); own {
			meant[short] = k
		}
	}
	return meant[nearest(strings.TrimPrefix(name, envPrefix), slices.Sorted(maps.Keys(meant)))]
}

// variables are those of all commands: what is set for one is no mistake for another.
func variables(commands []*cli.Command) []string {
	var names []string
	for _, c := range commands {
		for _, f := range c.Flags {
			if f, ok := f.(cli.DocGenerationFlag); ok {
				names = append(names, f.GetEnvVars()...)
			}
		}
		names = append(names, variables(c.Subcommands)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

var serviceLinks = []struct {
	name  *regexp.Regexp
	value func(string) bool
}{
	{regexp.MustCompile(`_SERVICE_HOST$`), isAddress},
	{regexp.MustCompile(`_SERVICE_PORT(_[A-Z0-9_]+)?$`), isPort},
	{regexp.MustCompile(`_PORT(_[0-9]+_(TCP|UDP|SCTP))?$`), isPortURL},
	{regexp.MustCompile(`_PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO$`), func(v string) bool { return slices.Contains([]string{"tcp", "udp", "sctp"}, v) }},
	{regexp.MustCompile(`_PORT_[0-9]+_(TCP|UDP|SCTP)_PORT$`), isPort},
	{regexp.MustCompile(`_PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR$`), isAddress},
}

// isServiceLink reports whether the kubelet has set a variable, as it does in every pod for each Service of its namespace
// (enableServiceLinks): those of Services named firsthop, firsthop-metrics and so on begin with FIRSTHOP_.
func isServiceLink(name, value string) bool {
	for _, l := range serviceLinks {
		if l.name.MatchString(name) && l.value(value) {
			return true
		}
	}
	return false
}

func isAddress(s string) bool { _, err := netip.ParseAddr(s); return err == nil }

func isPort(s string) bool { return regexp.MustCompile(`^[0-9]{1,5}$`).MatchString(s) }

func isPortURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && slices.Contains([]string{"tcp", "udp", "sctp"}, u.Scheme) && isAddress(u.Hostname()) && isPort(u.Port())
}
