package runtime

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/sysctl"
	"github.com/firsthop/firsthop/runtime/dataplane"
	"github.com/firsthop/firsthop/runtime/devices"
	"github.com/firsthop/firsthop/runtime/services"
)

// Config is what the runtime needs.
type Config struct {
	Version  string
	NodeName string
	Log      *slog.Logger

	mounts.Places

	// What the load balancer does: the init stage's settings, which are to be the same.
	Scope               natinit.Scope
	UDP                 bool
	Forbid              []string
	IgnoreKernelVersion bool

	// How the API server is reached.
	Kubeconfig string                 // "": the pod's ServiceAccount
	Pod        sources.PodEnvironment // what the kubelet gave this container
	Services   []netip.AddrPort       // addresses of the API service, where they are given
	Endpoints  []apiserver.Endpoint   // API servers, where they are given: used alone

	NodePorts services.NodePortAddresses

	// DenyNodeExternalIPs refuses external and load balancer IPs of Services that are
	// addresses of this node: who may write Services could take its ports.
	DenyNodeExternalIPs bool

	// ClusterIPsOutside lets clients outside the cluster use cluster IPs, where their
	// packets come to this node. It needs the packet path.
	ClusterIPsOutside bool

	// ServiceCIDRs are the addresses that Services are given: those that none has
	// are refused. nil: those that the API names; empty: nothing is refused.
	ServiceCIDRs []netip.Prefix

	// Conntrack is how netfilter's connection tracking is set; zero: it is left alone.
	Conntrack sysctl.Conntrack

	// Pods are watched, so that they can opt out and source ranges can judge them.
	// The ClusterRole system:node-proxier does not allow that.
	Pods bool

	// EndTCP ends TCP connections when their Service does not have their backend any more:
	// a client then needs no timeout to notice. UDP sockets are moved or ended always.
	EndTCP bool

	// PacketPath serves clients outside of the cluster: programs at the devices that lead off the node.
	PacketPath bool
	// Uplinks names devices that are, or are not, such whatever their addresses and routes say.
	Uplinks devices.Names

	// Where to listen; empty for not at all.
	HealthAddr   string   // /healthz and /livez, for load balancers: ":10256"
	MetricsAddrs []string // /metrics, /proxyMode, /healthz and /livez: "127.0.0.1:10249"

	// ServiceMetrics has two counters for each Service port in /metrics.
	ServiceMetrics bool
	// NodeStatus says on the Node object how Services are served: its label
	// firsthop.io/proxy and its condition FirsthopReady.
	NodeStatus bool

	// Written is called when every Service is in the table for the first time; nil: not called.
	Written func()

	// Notify tells systemd, as sd_notify(3); nil without one.
	Notify func(state string)
	// Watchdog is how often it wants to hear WATCHDOG=1 at least; 0: never.
	Watchdog time.Duration
}

// dataplane is what of it the dataplane needs.
func (c *Config) dataplane() dataplane.Config {
	return dataplane.Config{
		Log: c.Log, Places: c.Places,
		Scope: c.Scope, UDP: c.UDP, Forbid: c.Forbid, IgnoreKernelVersion: c.IgnoreKernelVersion, Journal: c.withJournal,
	}
}
