package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
)

// nowhere are an instance's flags that name what isn't there: a bad setting must be found before any of it is used.
func nowhere(t *testing.T) (dir string, flags []string) {
	dir = t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "bpffs"), unix.MNT_DETACH) }) // if the test fails
	for _, name := range []string{"bpffs", "cgroup", "state-dir", "run-dir"} {
		flags = append(flags, "--"+name, filepath.Join(dir, name))
	}
	return dir, flags
}

func TestSettingsThatAreBadAreNamedAndChangeNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		line string // after "firsthop"; NAME=VALUE before the command is environment
		want string // in the one line
	}{
		{"an unknown command", `bogus`, `"bogus" is not a command`},
		{"a mistyped command", `iint`, `"iint" is not a command of firsthop: did you mean init?`},
		{"a command cut short", `uninst`, `did you mean uninstall?`},
		{"a mistyped subcommand", `nat lokup 10.96.0.1:443`, `did you mean nat lookup?`},
		{"a mistyped flag", `init --porve answered`, `unknown flag "--porve": did you mean --prove?`},
		{"a mistyped flag with a value", `status --ouput=json`, `unknown flag "--ouput": did you mean --output?`},
		{"a mistyped flag of the program", `--vresion`, `unknown flag "--vresion": did you mean --version?`},
		{"an unknown variable", `FIRSTHOP_BOGUS=1 init`, `unknown environment variable FIRSTHOP_BOGUS`},
		{"a mistyped variable", `FIRSTHOP_PORVE=answered init`, `unknown environment variable FIRSTHOP_PORVE: did you mean FIRSTHOP_PROVE?`},
		{"a variable that has another prefix", `FIRSTHOP_ENDPOINT=192.0.2.1:6443 init`, `unknown environment variable FIRSTHOP_ENDPOINT: did you mean KUBERNETES_APISERVER_ENDPOINTS?`},
		{"a mistyped variable for version", `FIRSTHOP_OUPTUT=json version`, `did you mean FIRSTHOP_OUTPUT?`},
		{"a mistyped variable for a subcommand", `FIRSTHOP_OUPTUT=json nat lookup 10.96.0.1:443`, `did you mean FIRSTHOP_OUTPUT?`},
		{"a mistyped variable for completion", `FIRSTHOP_OUPTUT=json completion bash`, `did you mean FIRSTHOP_OUTPUT?`},
		{"a variable that looks like a Service's port", `FIRSTHOP_SERVICE_PORT=http version`, `unknown environment variable FIRSTHOP_SERVICE_PORT`},
		{"help on an unknown command", `help bogus`, `"bogus" is not a command`},
		{"an unknown flag before the command", `--bogus init`, `unknown flag "--bogus"`},
		{"an unknown flag", `init --bogus`, `unknown flag "--bogus"`},
		{"an unknown flag with a value", `init --bogus=3`, `unknown flag "--bogus"`},
		{"another command's flag", `status --lock-timeout 3s`, `unknown flag "--lock-timeout"`},
		{"an unknown flag of one letter", `init -x`, `unknown flag "-x"`},
		{"no address to look up", `nat lookup`, `nat lookup wants an address, as 10.96.0.1:443`},
		{"an address to look up without a port", `nat lookup 10.96.0.1`, `write 10.96.0.1:443`},
		{"an IPv6 address to look up without brackets", `nat lookup fd00:96::1:443`, `write [fd00:96::1]:443`},
		{"a process that is no number", `nat lookup 10.96.0.1:443 --pid x`, "--pid \"x\": want a whole number: `firsthop nat lookup --help`"},
		{"a flag without its value", `init --prove`, `--prove needs a value`},
		{"a stray argument of init", `init stray`, `init takes no arguments, but was given "stray"`},
		{"a stray argument of status", `status one two`, `status takes no arguments, but was given "one two"`},
		{"a stray argument of version", `version 1`, `version takes no arguments, but was given "1"`},
		{"no shell to complete for", `completion`, `bash, zsh or fish`},
		{"an unknown shell", `completion tcsh`, `"tcsh"`},
		{"two shells", `completion bash zsh`, `bash, zsh or fish`},

		{"an unknown strength", `init --prove strongly`, `--prove "strongly": want auto, translated, answered, verified, ready`},
		{"an unknown strength, by environment", `FIRSTHOP_PROVE=strongly init`, `--prove "strongly": want auto, translated, answered, verified, ready`},
		{"an unknown scope", `init --scope none`, `--scope "none": want all, host, off`},
		{"an unknown scope, by environment", `FIRSTHOP_SCOPE=none init`, `--scope "none": want all, host, off`},
		{"an unknown choice for the next boot", `init --persist on`, `--persist "on": want auto, off`},
		{"an unknown feature", `init --forbid-feature warp`, `"warp"`},
		{"an unknown feature, by environment", `FIRSTHOP_FORBID_FEATURE=batch,warp init`, `"warp"`},
		{"an unknown feature for check", `check --forbid-feature warp`, `"warp"`},
		{"an unknown output", `init -o yaml`, `--output "yaml": want text or json`},
		{"an unknown output, by environment", `FIRSTHOP_OUTPUT=yaml version`, `--output "yaml": want text or json`},
		{"an unknown log level", `init --log-level loud`, `--log-level "loud": want debug, info, warn or error`},
		{"an unknown log level for a command that logs nothing", `status --log-level loud`, `--log-level "loud"`},
		{"an unknown log format", `uninstall --log-format xml`, `--log-format "xml": want text or json`},
		{"an unknown log format, by environment", `FIRSTHOP_LOG_FORMAT=xml nat`, `--log-format "xml": want text or json`},

		{"a bool that is none", `init --udp=perhaps`, `--udp "perhaps": want true or false`},
		{"a bool that is none, by environment", `FIRSTHOP_UDP=perhaps init`, `FIRSTHOP_UDP "perhaps": want true or false`},
		{"a bool that is none, for uninstall", `FIRSTHOP_FORCE=yes! uninstall`, `FIRSTHOP_FORCE "yes!": want true or false`},
		{"a duration that is none", `init --timeout soon`, `--timeout "soon": want a duration, such as 2s`},
		{"a duration without a unit", `init --timeout 3`, `--timeout "3": want a duration, such as 2s`},
		{"a duration that is none, by environment", `FIRSTHOP_TIMEOUT=soon discover`, `FIRSTHOP_TIMEOUT "soon": want a duration, such as 2s`},
		{"no time at all", `init --timeout 0`, `--timeout 0s: want more than 0`},
		{"a negative time", `discover --timeout -3s`, `--timeout -3s: want more than 0`},
		{"a negative time for the lock", `uninstall --lock-timeout -1ms`, `--lock-timeout -1ms: want 0 or more`},
		{"a number that is none", `init --max-backends many`, `--max-backends "many": want a whole number`},
		{"a negative number, by environment", `FIRSTHOP_MAX_BACKENDS=-1 init`, `FIRSTHOP_MAX_BACKENDS "-1": want a whole number`},
		{"too little room", `init --max-backends 1023`, `--max-backends 1023: want 1024 to 16777216`},
		{"too much room", `init --max-frontends 16777217`, `--max-frontends 16777217: want 1024 to 16777216`},
		{"room that 32 bits can't say", `init --max-services 4294968320`, `--max-services 4294968320: want 1024 to 16777216`},

		{"a relative bpffs", `init --bpffs sys/fs/bpf`, `--bpffs "sys/fs/bpf": want an absolute path`},
		{"a relative bpffs for status", `status --bpffs sys/fs/bpf`, `--bpffs "sys/fs/bpf": want an absolute path`},
		{"a relative cgroup for nat", `nat --cgroup here`, `--cgroup "here": want an absolute path`},
		{"a relative cgroup for check", `check --cgroup here`, `--cgroup "here": want an absolute path`},
		{"a relative root for units", `units --root host`, `--root "host": want an absolute path`},
		{"a relative root for discover", `discover --root host`, `--root "host": want an absolute path`},
		{"a relative state directory for uninstall", `uninstall --state-dir var`, `--state-dir "var": want an absolute path`},
		{"a relative run directory for install", `install --run-dir run`, `--run-dir "run": want an absolute path`},

		{"a Service address that run can't use", `run --service-ips 10.96.0.1`, `--service-ips`},
		{"one in the environment", varVIPs + `=nonsense run`, varVIPs},
		{"an endpoint that is the Service IP", `run --service-ips 10.96.0.1:443 --endpoints 10.96.0.1:443`, `10.96.0.1:443`},
		{"ports that run can't tell apart", `run --service-ips 10.96.0.1:443,10.96.0.2:444 --endpoints 192.0.2.11:6443,192.0.2.12:6444`, `which endpoint port belongs to which Service port`},
		{"an endpoint with port 0", `run --endpoints 192.0.2.11:0`, `port 0`},
		{"a health address without a port", `run --healthz-bind-address 127.0.0.1`, `--healthz-bind-address "127.0.0.1": no port in it`},
		{"a health address with a bad port", `run --healthz-bind-address :70000`, `--healthz-bind-address ":70000": port "70000" is none`},
		{"a health address by the environment", `FIRSTHOP_HEALTHZ_BIND_ADDRESS=x:y run`, `--healthz-bind-address "x:y"`},
		{"a metrics address with a name", `run --metrics-bind-address example.org:10249`, `"example.org" is not an IP address`},
		{"a metrics address without brackets", `run --metrics-bind-address ::1:10249`, `needs brackets`},
		{"one port for two servers", `run --healthz-bind-address :10249`, `are the same port`},
		{"one port for two of metrics", `run --metrics-bind-address :10266,127.0.0.1:10266`, `--metrics-bind-address 127.0.0.1:10266: another one has the same port`},
		{"a negative number of connections", `run --conntrack-min -1`, `--conntrack-min -1: want 0 to 2147483647`},
		{"a number of connections that is none", `run --conntrack-max-per-core many`, `--conntrack-max-per-core "many": want a whole number`},
		{"a timeout of conntrack below a second", `run --conntrack-udp-timeout 5ms`, `--conntrack-udp-timeout 5ms: want 0, or at least 1s`},
		{"a Service range that is none", `run --service-cidr 10.96.0.0`, `--service-cidr`},
		{"node port addresses that are none", `run --nodeport-addresses 10.0.0.300/8`, `--nodeport-addresses`},
		{"an unknown scope for run", `run --scope none`, `--scope "none"`},
		{"a node name that is none", `run --node-name Node_1`, `--node-name "Node_1" cannot be the name of a Node: want at most 253 lower case letters, digits,`},
		{"an unknown feature for run", `run --forbid-feature warp`, `"warp"`},
		{"a relative state directory for run", `run --state-dir var`, `--state-dir "var": want an absolute path`},

		{"an extra service that is no service", `init --extra-service dns`, `--extra-service "dns": no = in it`},
		{"an extra service of no protocol", `init --extra-service icmp/10.96.0.10:53=10.0.0.5:53`, `protocol "icmp"`},
		{"an extra service with port 0", `init --extra-service udp/10.96.0.10:0=10.0.0.5:53`, `"10.96.0.10:0" has port 0`},
		{"an extra service whose second backend is none", `init --extra-service udp/10.96.0.10:53=10.0.0.5:53,10.0.0.6:0`, `"udp/10.96.0.10:53=10.0.0.5:53,10.0.0.6:0": "10.0.0.6:0" has port 0`},
		{"two extra services in one", `init --extra-service udp/10.96.0.10:53=10.0.0.5:53,tcp/10.96.0.10:53=10.0.0.5:53`, `"tcp/10.96.0.10:53=10.0.0.5:53" is not IP:PORT`},
		{"an extra service with a name", `init --extra-service udp/10.96.0.10:53=dns.example:53`, `"dns.example:53" is not IP:PORT`},
		{"an extra service without backends", `init --extra-service udp/10.96.0.10:53=`, `"" is not IP:PORT`},
		{"an extra service across families", `init --extra-service udp/10.96.0.10:53=[fd00::5]:53`, `of another family`},
		{"an extra service that is its own backend", `init --extra-service udp/10.96.0.10:53=10.96.0.10:53`, `is the Service itself`},
		{"one extra service twice", `init --extra-service udp/10.96.0.10:53=10.0.0.5:53 --extra-service udp/10.96.0.10:53=10.0.0.6:53`, `udp/10.96.0.10:53 is given twice`},
		{"an API server as an extra service", varServer + `=192.0.2.11:6443 init --extra-service tcp/192.0.2.11:6443=10.0.0.6:53`, `is the address of an API server`},
		{"the API service as an extra service", varVIPs + `=10.96.0.1:443 init --extra-service tcp/10.96.0.1:443=10.0.0.6:53`, `is the API service`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, flags := nowhere(t)
			line := strings.Fields(tc.line)
			if commands := strings.Fields("init run check status discover nat units install uninstall"); slices.ContainsFunc(line, func(w string) bool {
				return slices.Contains(commands, w)
			}) && line[0] != "--bogus" {
				line = insertBefore(line, flags)
			}
			r := plain(t, line...).exits(bootstrap.ExitUsage).says(tc.want)
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("it made %v", entries)
			}
			if strings.Contains(r.stdout+r.stderr, "parse error") || strings.Contains(r.stdout+r.stderr, "strconv") {
				t.Errorf("it speaks of its inside:\n%s%s", r.stdout, r.stderr)
			}
			if n := strings.Count(r.stderr, "\n"); n > 1 {
				t.Errorf("it says %d lines:\n%s", n, r.stderr)
			}
		})
	}
}

// insertBefore puts an instance's flags right behind the command's name, so that flags of the test come after them and
// win.
func insertBefore(line, flags []string) []string {
	env, rest := splitEnv(line)
	return slices.Concat(env, rest[:1], flags, rest[1:])
}

func TestVariablesThatAreEmptyAreUnset(t *testing.T) {
	n := newNode(t)
	n.serving()
	line := []string{varVIPs + "=" + vips, varServer + "=" + servers}
	for _, name := range []string{"PROVE", "SCOPE", "UDP", "OUTPUT", "LOG_LEVEL", "LOG_FORMAT", "TIMEOUT", "LOCK_TIMEOUT", "MAX_BACKENDS",
		"BEST_EFFORT", "DRY_RUN", "FORBID_FEATURE", "IGNORE_KERNEL_VERSION", "ROOT"} {
		line = append(line, "FIRSTHOP_"+name+"=")
	}
	r := n.run(append(line, "FIRSTHOP_PERSIST=off", "init", "-o", "json")...).exits(0).report()
	if len(r.Hooks) != 8 {
		t.Errorf("%d hooks, want 8: an empty FIRSTHOP_UDP switches UDP off", len(r.Hooks))
	}
}
