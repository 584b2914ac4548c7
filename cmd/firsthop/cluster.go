package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/bootstrap/cluster"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/deploy"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// pluginName is the name by which kubectl finds this program: `kubectl firsthop status` is `firsthop cluster status`.
const pluginName = "kubectl-firsthop"

// asPlugin gives the arguments of the program that was called by that name.
func asPlugin(args []string) []string {
	if len(args) == 0 || filepath.Base(args[0]) != pluginName {
		return args
	}
	return append([]string{"firsthop", "cluster"}, args[1:]...)
}

func clusterCommand(e env) *cli.Command {
	cmd := &cli.Command{
		Name:  "cluster",
		Usage: "install firsthop on every node of a cluster, from an administrator's kubeconfig",
		Description: `Works from any machine that reaches the API server. kube-proxy is not touched.
A link to this program named kubectl-firsthop makes it a plugin:
kubectl firsthop status.`,
		Subcommands: []*cli.Command{clusterInstallCommand(e), clusterStatusCommand(e), clusterUninstallCommand(e)},
	}
	cmd.Action = func(c *cli.Context) error {
		if word := c.Args().First(); word != "" {
			names := []string{"install", "status", "uninstall"}
			return usagef("%q is not a command of firsthop cluster: %s`firsthop cluster --help` lists them", word, didYouMean(nearest(word, names)))
		}
		return cli.ShowSubcommandHelp(c)
	}
	return cmd
}

func kubeconfigFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("kubeconfig", "", "`FILE` with an administrator's credentials (default: $KUBECONFIG, ~/.kube/config, /etc/kubernetes/admin.conf)", ""),
		&cli.StringFlag{Name: "context", Usage: "`NAME` of a context of the kubeconfig (default: its current one)"},
	}
}

// patienceFlag is how long to wait.
func patienceFlag() cli.Flag {
	return &cli.DurationFlag{Name: "wait", Value: 5 * time.Minute, Usage: "`DURATION` that a node, or a batch of nodes, may take"}
}

func leaveOutFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "leave-out", Usage: usage}
}

func clusterInstallCommand(e env) *cli.Command {
	return clusterSubcommand(e, &cli.Command{
		Name:  "install",
		Usage: "look, let every node check itself, apply, and wait for each node's proof",
		Description: `Refuses, with all reasons in one list, what can't work: a missing right, an old
Kubernetes, a dataplane that serves Services in the place of kube-proxy. One node
comes first; the first node that fails its proof stops the roll-out. Interrupted
or repeated, it does what is missing. kube-proxy is not touched, and must stay
for packets from outside of the cluster.`,
		Flags: join([]cli.Flag{
			&cli.StringFlag{Name: "image", Usage: "`IMAGE` of firsthop, by tag or digest (default: this version's)"},
			&cli.StringFlag{Name: "values", Usage: "`FILE` with values of the chart (deploy/chart/values.yaml)"},
			&cli.StringFlag{Name: "service-ips", Usage: "Service `ADDRESSES` of the API for every node: ip:port, comma-separated [$" + apiserver.VarServices + "]"},
			&cli.StringFlag{Name: "endpoints", Usage: "API server `ADDRESSES` for every node: ip:port, comma-separated [$" + apiserver.VarEndpoints + "]"},
			&cli.BoolFlag{Name: "old-kernels", Usage: "there are nodes with Linux below 5.11: adds CAP_SYS_RESOURCE"},
			leaveOutFlag("`NODE` that gets no pod, now and by later installs; repeatable"),
			&cli.StringSliceFlag{Name: "include", Usage: "`NODE` that was left out, and is to be served; repeatable"},
			&cli.BoolFlag{Name: "force", Usage: "take over fields of firsthop's objects that somebody else has set"},
			&cli.BoolFlag{Name: "dry-run", Usage: "look, and ask the API server what would change; change nothing"},
			&cli.BoolFlag{Name: "print", Usage: "print the objects as YAML, and ask no API server"},
			patienceFlag(),
		}, kubeconfigFlags(), []cli.Flag{outputFlag()}),
	}, runClusterInstall)
}

func clusterStatusCommand(e env) *cli.Command {
	return clusterSubcommand(e, &cli.Command{
		Name:        "status",
		Usage:       "what each node says of itself, and what is odd about the cluster",
		Description: `Changes nothing. Exits 6 if a node that should be served is not.`,
		Flags:       join(kubeconfigFlags(), []cli.Flag{outputFlag()}),
	}, func(k *call) error {
		cfg, err := clusterConfig(k)
		if err != nil {
			return err
		}
		st, err := cluster.ReadStatus(k.Context.Context, cfg)
		if err != nil {
			return err
		}
		return k.report(st, st.ExitCode, func(p *printer) { clusterStatusText(p, st) })
	})
}

func clusterUninstallCommand(e env) *cli.Command {
	return clusterSubcommand(e, &cli.Command{
		Name:  "uninstall",
		Usage: "undo firsthop on every node and in the cluster",
		Description: `Refuses where a node needs the Service IP to start (exit code 8), or nothing else
serves Service addresses. What install wrote becomes what it was before.`,
		Flags: join([]cli.Flag{
			leaveOutFlag("`NODE` on which nothing is undone; repeatable"),
			&cli.BoolFlag{Name: "force", Usage: "also where nodes are cut off from the Service addresses by it"},
			&cli.BoolFlag{Name: "dry-run", Usage: "list what would be undone, and change nothing"},
			patienceFlag(),
		}, kubeconfigFlags(), []cli.Flag{outputFlag()}),
	}, func(k *call) error {
		cfg, err := clusterConfig(k)
		if err != nil {
			return err
		}
		if cfg.Values, err = deploy.Defaults(); err != nil {
			return err
		}
		rep, err := cluster.Uninstall(k.Context.Context, cfg)
		return clusterReport(k, rep, err)
	})
}

// clusterSubcommand completes a command of cluster.
func clusterSubcommand(e env, cmd *cli.Command, do func(*call) error) *cli.Command {
	cmd.ArgsUsage = " "
	cmd.OnUsageError = onUsageError
	cmd.HideHelpCommand = true
	cmd.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return usagef("cluster %s takes no arguments, but was given %q", cmd.Name, strings.Join(c.Args().Slice(), " "))
		}
		if err := errors.Join(checkVariables(e, c.App.Commands), checkCommonFlags(e, c)); err != nil {
			return err
		}
		p, err := newPrinter(e, c)
		if err != nil {
			return err
		}
		return do(&call{Context: c, env: e, out: p, log: slog.New(slog.DiscardHandler)})
	}
	return cmd
}

// clusterConfig has the credentials, and shows progress to people.
func clusterConfig(k *call) (cfg cluster.Config, err error) {
	cfg = cluster.Config{
		Version: version, LeaveOut: k.StringSlice("leave-out"), Include: k.StringSlice("include"), Force: k.Bool("force"), DryRun: k.Bool("dry-run"), Patience: k.Duration("wait"),
	}
	if !k.out.json {
		cfg.Progress = func(s cluster.Step) {
			k.out.item(k.out.paint(s.Result, 4)+"  "+fmt.Sprintf("%-12s", s.Step), findingColumn, s.Text)
			if len(s.Rows) > 0 {
				k.out.linef("")
				k.out.table(s.Rows)
				k.out.linef("")
			}
		}
	}
	cfg.REST, err = adminConfig(k.String("kubeconfig"), k.String("context"))
	return cfg, err
}

// adminConf is where kubeadm leaves an administrator's credentials.
const adminConf = "/etc/kubernetes/admin.conf"

// adminConfig finds the credentials as kubectl does.
func adminConfig(file, context string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	if file == "" {
		rules.Precedence = append(rules.Precedence, adminConf)
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) {
			return nil, usagef("no kubeconfig: give --kubeconfig FILE, with an administrator's credentials")
		}
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	cfg.UserAgent = "firsthop/" + version
	return cfg, nil
}

func runClusterInstall(k *call) error {
	values, err := clusterValues(k)
	if err != nil {
		return err
	}
	if k.Bool("print") {
		files, err := deploy.Render(values)
		if err != nil {
			return err
		}
		for i, f := range files {
			if i > 0 {
				f = append([]byte("---\n"), f...)
			}
			if _, err := k.env.stdout.Write(f); err != nil {
				return err
			}
		}
		return nil
	}
	cfg, err := clusterConfig(k)
	if err != nil {
		return err
	}
	cfg.Values = values
	rep, err := cluster.Install(k.Context.Context, cfg)
	return clusterReport(k, rep, err)
}

// clusterValues are the chart's defaults, then those of a file, then those of flags.
func clusterValues(k *call) (deploy.Values, error) {
	v, err := deploy.Defaults()
	if err != nil {
		return v, err
	}
	if v.Image = "ghcr.io/firsthop/firsthop:" + version; version == "dev" {
		v.Image = "ghcr.io/firsthop/firsthop:latest"
	}
	if file := k.String("values"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return v, usagef("--values: %w", err)
		}
		if err := yaml.UnmarshalStrict(text, &v); err != nil {
			return v, usagef("--values %s: %w", file, err)
		}
	}
	if image := k.String("image"); image != "" {
		v.Image = image
	}
	v.KernelsBelow511 = v.KernelsBelow511 || k.Bool("old-kernels")
	for flag, at := range map[string]struct {
		to       *string
		variable string
	}{"service-ips": {&v.ServiceIPs, apiserver.VarServices}, "endpoints": {&v.Endpoints, apiserver.VarEndpoints}} {
		if text := cmp.Or(k.String(flag), k.env.getenv(at.variable)); text != "" {
			*at.to = text
		}
	}
	return v, nil
}

// clusterReport writes what a command did, and ends with its code.
func clusterReport(k *call, rep *cluster.Report, err error) error {
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("interrupted: run it again, it continues where it stopped: %w", err)
		}
		return err
	}
	return k.report(rep, rep.ExitCode, func(p *printer) {
		if len(rep.Steps) > 0 {
			p.linef("")
		}
		p.verdict(rep.Result, "%s", rep.Sentence)
		block := func(title string, list []string) {
			if len(list) > 0 {
				p.linef("\n%s:", title)
				for _, text := range list {
					p.say(2, "%s", text)
				}
			}
		}
		block("because", rep.Refusals)
		if rep.DryRun {
			block("it would", rep.Changes)
		}
		if len(rep.Log) > 0 {
			p.linef("\nits log:")
			for _, line := range rep.Log {
				p.linef("  %s", line)
			}
		}
		if len(rep.Next) > 0 {
			p.linef("\nnext:")
			for _, text := range rep.Next {
				p.linef("  %s", text)
			}
		}
	})
}

func clusterStatusText(p *printer, st *cluster.Status) {
	p.verdict(st.Result, "%s\n", st.Sentence)
	p.linef("cluster     Kubernetes %s, provider %s", st.Cluster.Kubernetes, st.Cluster.Provider)
	p.linef("kube-proxy  %s", st.Cluster.KubeProxy)
	rows := [][]string{{"NODE", "STATE", "KERNEL", "VERSION", "MODE", "SAID", "API-SERVERS", "KUBE-PROXY", "WHY"}}
	for _, n := range st.Nodes {
		_, tag, _ := strings.Cut(filepath.Base(n.Image), ":")
		said := "-"
		if at, err := time.Parse(time.RFC3339, n.ConnectTime.Said); err == nil {
			said = time.Since(at).Round(time.Second).String() + " ago"
		}
		proxy := "no"
		if n.Node.KubeProxy {
			proxy = "yes"
		}
		ready, _, _ := strings.Cut(n.APIServers, " ready")
		why := n.Reason
		if n.Grade == diagnose.OK {
			why = "proven"
		}
		rows = append(rows, []string{n.Name, string(n.Grade), n.Kernel, orDash(tag), orDash(n.Mode), said, orDash(ready), proxy, why})
	}
	p.linef("")
	p.table(rows)
	if len(st.Oddities) > 0 {
		p.linef("\nto know:")
		for _, o := range st.Oddities {
			p.say(2, "%s", o)
		}
	}
}
