package units

import "github.com/coreos/go-systemd/v22/unit"

// RuntimeServiceName is the unit of `firsthop run`. Packages ship it, and do not
// enable it: it needs credentials, and on most nodes a DaemonSet runs it.
const RuntimeServiceName = "firsthop.service"

// RuntimeUnit returns firsthop.service as a package ships it, for systemd from
// 239 on.
//
// Type=notify: it is up once it has taken over and verified what the table
// holds, with or without an API server (it never waits for one). Stopping or
// losing it stops no traffic, so it may be restarted as often as it takes; the
// watchdog ends one that hangs. It needs no mount namespace of its own, and
// keeps the host's: it looks at the namespaces of pods.
func RuntimeUnit() ([]byte, error) {
	head := func(name, value string) *unit.UnitOption { return unit.NewUnitOption("Unit", name, value) }
	opts := []*unit.UnitOption{
		head("Description", "firsthop: every Kubernetes Service of this node"),
		head("Documentation", "man:firsthop(8) https://github.com/firsthop/firsthop"),
		head("Wants", ServiceName),
		head("After", ServiceName+" network.target"),
		head("StartLimitIntervalSec", "0"),
		service("Type", "notify"),
		service("NotifyAccess", "main"),
		service("WatchdogSec", "60s"),
		service("TimeoutStartSec", "60s"),
		service("Restart", "always"),
		service("RestartSec", "1s"),
		service("EnvironmentFile", "-"+EnvironmentFile),
		service("ExecStart", PackageProgram+" run"),
	}
	opts = append(opts, hardening(apiBPFFS)...)
	opts = append(opts, unit.NewUnitOption("Install", "WantedBy", "multi-user.target"))
	return renderPackaged(opts, ", where FIRSTHOP_KUBECONFIG must be"), nil
}
