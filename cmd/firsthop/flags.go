package main

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/proof"
)

// The flags that several commands have. Most can be given by an environment
// variable too, FIRSTHOP_ and the name: those made by stringFlag and boolFlag,
// and those with envVar.

const (
	categoryInstance = "Instance (several can live on one machine, each with directories of its own):"
	categoryOutput   = "Output:"
	categoryAddress  = "API server addresses (what is not given is discovered):"
)

func envVar(name string) []string {
	return []string{envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}
}

func stringFlag(name, value, usage, category string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Value: value, Usage: usage, Category: category, EnvVars: envVar(name)}
}

func boolFlag(name string, value bool, usage string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Value: value, Usage: usage, EnvVars: envVar(name)}
}

func commonFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("bpffs", "", "`DIR` of the bpffs that holds the pins (default: the host's /sys/fs/bpf)", categoryInstance),
		stringFlag("cgroup", "", "cgroup2 `DIR` whose processes are served (default: the host's true root)", categoryInstance),
		stringFlag("state-dir", "", "`DIR` for what survives a reboot (default: the host's "+instance.DefaultStateDir+")", categoryInstance),
		stringFlag("run-dir", "", "`DIR` for the lock and the last report (default: the host's "+instance.DefaultRunDir+")", categoryInstance),
		stringFlag("root", "", "`DIR` that is the host's root, for a container that has it mounted (default: found out)", categoryInstance),
		stringFlag("log-level", "warn", "`LEVEL` of the log on stderr: debug, info, warn, error", categoryOutput),
		stringFlag("log-format", "text", "`FORMAT` of the log: text or json", categoryOutput),
	}
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT` of the output: text or json", Category: categoryOutput, EnvVars: envVar("output")}
}

func addressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "service-ips", Usage: "Service `ADDRESSES` of the API: ip:port, comma-separated, IPv6 in brackets [$" + apiserver.VarServices + "]", Category: categoryAddress},
		&cli.StringFlag{Name: "endpoints", Usage: "API server `ADDRESSES`: ip:port or name:port, comma-separated [$" + apiserver.VarEndpoints + "]", Category: categoryAddress},
		&cli.DurationFlag{Name: "timeout", Value: 2 * time.Second, Usage: "for finding and probing addresses, and again for the proof; credential plugins have 10s or this", Category: categoryAddress, EnvVars: envVar("timeout")},
	}
}

// kubeadmFlag is for the commands that prepare a node before kubeadm sets it up.
func kubeadmFlag() cli.Flag {
	return stringFlag("kubeadm-config", "", "`FILE` for kubeadm's --config, to read addresses from it before kubeadm runs", categoryAddress)
}

func kernelFlags() []cli.Flag {
	return []cli.Flag{
		boolFlag("ignore-kernel-version", false, "accept a kernel below the minimum version if every needed feature is there"),
		forbidFlag(),
	}
}

func forbidFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "forbid-feature", Usage: "treat a kernel feature as absent (`NAME` as in check --verbose), to try the fallback; repeatable", EnvVars: envVar("forbid-feature")}
}

// balancerFlags say whom the load balancer serves, and what beside the API.
func balancerFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("scope", string(bootstrap.ScopeAll), "whose connections are served: all, host (not pods) or off", ""),
		boolFlag("udp", true, "serve UDP too"),
		&cli.StringSliceFlag{Name: "extra-service", Usage: "seed a further Service: `PROTO/IP:PORT=IP:PORT[,…]`, as udp/10.96.0.10:53=10.0.0.5:53; repeatable"},
		&cli.UintFlag{Name: "max-frontends", Usage: "room in a new table (default: 131072)", EnvVars: envVar("max-frontends")},
		&cli.UintFlag{Name: "max-services", Usage: "room in a new table (default: 65536)", EnvVars: envVar("max-services")},
		&cli.UintFlag{Name: "max-backends", Usage: "room in a new table (default: 131072)", EnvVars: envVar("max-backends")},
	}
}

func lockFlag() cli.Flag {
	return &cli.DurationFlag{Name: "lock-timeout", Value: 30 * time.Second, Usage: "how long to wait for another firsthop", EnvVars: envVar("lock-timeout")}
}

func join(lists ...[]cli.Flag) []cli.Flag { return slices.Concat(lists...) }

func dirs(c *cli.Context) mounts.Dirs {
	return mounts.Dirs{
		BPFFS: c.String("bpffs"), Cgroup: c.String("cgroup"),
		StateDir: c.String("state-dir"), RunDir: c.String("run-dir"), Root: c.String("root"),
	}
}

// checkCommonFlags judges flags that parse but make no sense, whether or not
// the command comes to use them.
func checkCommonFlags(e env, c *cli.Context) error {
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		switch d := c.Duration(name); {
		case name == "timeout" && d <= 0:
			return usagef("--timeout %s: want more than 0", d)
		case name == "lock-timeout" && d < 0:
			return usagef("--lock-timeout %s: want 0 or more", d)
		}
		if _, ok := f.(*cli.UintFlag); ok { // before it is cut to 32 bits
			if err := bootstrap.CheckCapacity("--"+name, uint64(c.Uint(name))); err != nil {
				return &bootstrap.UsageError{Err: err}
			}
		}
		if s, ok := f.(*cli.StringFlag); ok && c.IsSet(name) && c.String(name) == "" && s.Category != categoryAddress && !givenEmpty(e, s.EnvVars) {
			// An unset shell variable must not mean the whole machine.
			return usagef("--%s is given, but empty: leave it out for the default", name)
		}
	}
	return nil
}

// givenEmpty reports whether one of the variables is there without a value,
// which is the same as unset.
func givenEmpty(e env, variables []string) bool {
	for _, v := range variables {
		if value, there := e.lookupEnv(v); there && value == "" {
			return true
		}
	}
	return false
}

// given lists how a setting was given, the strongest first.
func (c *call) given(flag, variable string) []discover.Given {
	return []discover.Given{
		{Name: "--" + flag, Value: c.String(flag)},
		{Name: variable, Value: c.env.getenv(variable)},
	}
}

// serviceAccountDir is where the kubelet mounts a pod's credentials.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// endpointDir is where the DaemonSet mounts the ConfigMap kubernetes-services-endpoint.
const endpointDir = "/etc/kubernetes-services-endpoint"

func pod(e env) sources.PodEnvironment {
	p := sources.PodEnvironment{
		ServiceHost: e.getenv("KUBERNETES_SERVICE_HOST"),
		ServicePort: e.getenv("KUBERNETES_SERVICE_PORT"),
		Port:        e.getenv("KUBERNETES_PORT"),
	}
	if p.ServiceHost != "" {
		p.ServiceAccountDir, p.EndpointDir = serviceAccountDir, endpointDir
	}
	return p
}

// shared reads the settings that init and run must have alike.
func (c *call) shared() bootstrap.Shared {
	return bootstrap.Shared{
		Dirs:      c.dirs,
		Services:  c.given("service-ips", apiserver.VarServices),
		Endpoints: c.given("endpoints", apiserver.VarEndpoints),
		Scope:     cmp.Or(c.String("scope"), string(bootstrap.ScopeAll)),
		Forbid:    c.forbidden(),
	}
}

// forbidden are the kernel features that are to be treated as absent.
func (c *call) forbidden() []string { return atCommas(c.StringSlice("forbid-feature")) }

// config reads the settings that init, install and check share.
func (c *call) config() bootstrap.Config {
	return bootstrap.Config{
		Shared:  c.shared(),
		Version: version,
		Binary:  c.env.self,
		Kubeadm: c.String("kubeadm-config"),
		Pod:     pod(c.env),
		Prove:   string(proof.Auto),
		Persist: string(bootstrap.PersistAuto),
		UDP:     c.Bool("udp"),
		Extra:   c.StringSlice("extra-service"),
		Sizes:   bpf.Sizes{Frontends: uint32(c.Uint("max-frontends")), Services: uint32(c.Uint("max-services")), Backends: uint32(c.Uint("max-backends"))},

		IgnoreKernelVersion: c.Bool("ignore-kernel-version"),
		DryRun:              c.Bool("dry-run"),
		Timeout:             c.Duration("timeout"),
		LockTimeout:         c.Duration("lock-timeout"),
		Log:                 c.log,
	}
}

// atCommas splits each value: by a variable, several can't be given otherwise.
func atCommas(values []string) []string {
	var out []string
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			out = append(out, strings.TrimSpace(part))
		}
	}
	return out
}
