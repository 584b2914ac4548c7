package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/go-logr/logr"
	"github.com/urfave/cli/v2"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/runtime"
	"github.com/firsthop/firsthop/runtime/devices"
	"github.com/firsthop/firsthop/runtime/services"
)

// off is for an address that is not to be listened on.
const off = "off"

func runCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "serve every Service, from what init has made, until it is told to stop",
		ArgsUsage: " ",
		Description: `Takes over the NAT table and the programs that init left, follows Services and
EndpointSlices, and keeps the table as they want it. Stopped, killed or cut off
from every API server, it leaves the dataplane serving what it last knew. Give
it the settings that init has (scope, udp, directories).`,
		Flags: join([]cli.Flag{
			stringFlag("kubeconfig", "", "`FILE` with the credentials (default: the pod's ServiceAccount)", ""),
			&cli.StringFlag{Name: "node-name", Usage: "`NAME` of this node's Node object (default: $NODE_NAME, then the host name)", EnvVars: []string{"FIRSTHOP_NODE_NAME", "NODE_NAME"}},
			&cli.StringSliceFlag{Name: "nodeport-addresses", Usage: "serve node ports on these `CIDRS` only; primary stands for the node's own addresses, localhost for loopback, all for all; comma-separated, repeatable (default: every address of the host)", EnvVars: envVar("nodeport-addresses")},
			&cli.StringSliceFlag{Name: "service-cidr", Usage: "refuse connections to addresses of these `CIDRS` that no Service has, or none; comma-separated, repeatable (default: the API's ServiceCIDRs, since Kubernetes 1.33)", EnvVars: envVar("service-cidr")},
			stringFlag("healthz-bind-address", ":10256", "`ADDRESS` of /healthz and /livez, or off", ""),
			&cli.StringSliceFlag{Name: "metrics-bind-address", Value: cli.NewStringSlice("127.0.0.1:10249"), Usage: "`ADDRESS` of /metrics and /proxyMode, or off; comma-separated, repeatable", EnvVars: envVar("metrics-bind-address")},
			stringFlag("scope", string(bootstrap.ScopeAll), "whose connections are served: all, host (not pods) or off", ""),
			boolFlag("udp", true, "serve UDP too"),
			boolFlag("service-metrics", false, "two counters for each Service port in /metrics"),
			boolFlag("node-status", true, "say on the Node object how Services are served: label firsthop.io/proxy, condition FirsthopReady"),
			boolFlag("end-tcp", false, "end TCP connections whose Service does not have their backend any more; connected UDP sockets are moved, or ended, always"),
			boolFlag("deny-node-external-ips", false, "do not serve external and load balancer IPs of Services that are addresses of this node"),
			boolFlag("cluster-ips-outside", false, "let clients outside the cluster use cluster IPs too, if their packets are routed to this node; needs the packet path"),
			boolFlag("packet-path", false, "serve clients outside of the cluster, too, by programs at the network devices that lead off the node; not for production yet"),
			&cli.StringSliceFlag{Name: "uplinks", Usage: "`DEVICES` that lead off the node whatever their addresses and routes say, as eth0 or ens*; comma-separated, repeatable", EnvVars: envVar("uplinks")},
			&cli.StringSliceFlag{Name: "not-uplinks", Usage: "`DEVICES` that don't; comma-separated, repeatable", EnvVars: envVar("not-uplinks")},
			boolFlag("pods", true, "watch this node's pods: they can opt out, and source ranges judge them; needs more than system:node-proxier"),
		}, conntrackFlags(), kernelFlags(), without("timeout", addressFlags()), without("log-level", commonFlags()), []cli.Flag{
			stringFlag("log-level", "info", "`LEVEL` of the log on stderr: debug, info, warn, error", categoryOutput),
		}),
		Action: action(e, runRun),
	}
}

func runRun(c *call) error {
	steady := collectGarbage()
	defer steady()
	cfg, err := runConfig(c)
	if err != nil {
		return err
	}
	cfg.Written = steady
	klog.SetLogger(logr.Discard()) // client-go's words are for its programmers; runtime/watch says it in ours
	return runtime.Run(c.Context.Context, cfg)
}

func runConfig(c *call) (cfg runtime.Config, err error) {
	cfg = runtime.Config{
		Version: version, Log: c.log, Places: c.dirs.Places(),
		UDP: c.Bool("udp"), Forbid: c.forbidden(), IgnoreKernelVersion: c.Bool("ignore-kernel-version"),
		Kubeconfig: c.String("kubeconfig"), Pod: pod(c.env), Pods: c.Bool("pods"), EndTCP: c.Bool("end-tcp"),
		DenyNodeExternalIPs: c.Bool("deny-node-external-ips"), ClusterIPsOutside: c.Bool("cluster-ips-outside"),
		ServiceMetrics: c.Bool("service-metrics"), NodeStatus: c.Bool("node-status"),
		PacketPath: c.Bool("packet-path"),
		Uplinks:    devices.Names{Include: atCommas(c.StringSlice("uplinks")), Exclude: atCommas(c.StringSlice("not-uplinks"))},
	}
	if err := cfg.Uplinks.Validate(); err != nil {
		return cfg, usagef("--uplinks and --not-uplinks: %w", err)
	}
	given, scope, err := c.shared().Parse()
	if err != nil {
		return cfg, err
	}
	cfg.Scope, cfg.Services, cfg.Endpoints = scope, given.Services, given.Endpoints
	if cfg.NodeName, err = nodeName(c.String("node-name")); err != nil {
		return cfg, err
	}
	if wrong := validation.IsDNS1123Subdomain(cfg.NodeName); len(wrong) > 0 {
		return cfg, usagef("--node-name %q cannot be the name of a Node: want at most %d lower case letters, digits, '-' and '.', a letter or digit first and last",
			cfg.NodeName, validation.DNS1123SubdomainMaxLength)
	}
	if cfg.NodePorts, err = services.ParseNodePortAddresses(atCommas(c.StringSlice("nodeport-addresses"))); err != nil {
		return cfg, usagef("--nodeport-addresses: %w", err)
	}
	if cfg.ServiceCIDRs, err = services.ParseServiceCIDRs(atCommas(c.StringSlice("service-cidr"))); err != nil {
		return cfg, usagef("--service-cidr: %w", err)
	}
	if cfg.Conntrack, err = conntrackConfig(c.Context); err != nil {
		return cfg, err
	}
	if cfg.HealthAddr, cfg.MetricsAddrs, err = listenAddrs(c.Context); err != nil {
		return cfg, err
	}
	if socket := c.env.getenv("NOTIFY_SOCKET"); socket != "" {
		cfg.Notify = func(state string) {
			if _, err := daemon.SdNotify(false, state); err != nil {
				c.log.Warn("notifying systemd failed", "state", state, "err", err)
			}
		}
		if us, err := strconv.ParseInt(c.env.getenv("WATCHDOG_USEC"), 10, 64); err == nil {
			cfg.Watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return cfg, nil
}

// listenAddrs are the addresses to listen on, empty for none.
func listenAddrs(c *cli.Context) (healthz string, metrics []string, err error) {
	const healthzFlag, metricsFlag = "healthz-bind-address", "metrics-bind-address"
	if healthz, err = listenAddr(healthzFlag, c.String(healthzFlag)); err != nil {
		return "", nil, err
	}
	for _, text := range atCommas(c.StringSlice(metricsFlag)) {
		addr, err := listenAddr(metricsFlag, text)
		if err != nil {
			return "", nil, err
		}
		if samePort(healthz, addr) {
			return "", nil, usagef("--%s %s and --%s %s are the same port: give two, or %s for one (the metrics port answers /healthz and /livez too)",
				healthzFlag, healthz, metricsFlag, addr, off)
		}
		if slices.ContainsFunc(metrics, func(other string) bool { return samePort(other, addr) }) {
			return "", nil, usagef("--%s %s: another one has the same port", metricsFlag, addr)
		}
		if addr != "" {
			metrics = append(metrics, addr)
		}
	}
	return healthz, metrics, nil
}

func listenAddr(flag, text string) (string, error) {
	if text == off || text == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(text)
	bad := func(why string) error { return usagef("--%s %q: %s: want IP:PORT, :PORT or %s", flag, text, why, off) }
	switch {
	case err != nil && strings.Count(text, ":") > 1:
		return "", bad("an IPv6 address needs brackets, as in [::1]:10256")
	case err != nil:
		return "", bad("no port in it")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", bad("port " + strconv.Quote(port) + " is none")
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return "", bad(strconv.Quote(host) + " is not an IP address")
	}
	return text, nil
}

// samePort reports whether two servers would be in each other's way.
func samePort(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	every := func(host string) bool { return host == "" || host == "::" || host == "0.0.0.0" }
	return errA == nil && errB == nil && portA == portB && portA != "0" && (hostA == hostB || every(hostA) || every(hostB))
}

// without leaves a flag out.
func without(name string, flags []cli.Flag) []cli.Flag {
	return slices.DeleteFunc(flags, func(f cli.Flag) bool { return f.Names()[0] == name })
}

func nodeName(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the node's name: %w: give --node-name", err)
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}
