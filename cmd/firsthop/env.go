package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/proof"
)

// version is set by the build (-ldflags -X main.version=…).
var version = "dev"

// env is the program's seam to the world.
type env struct {
	stdin  io.Reader
	stdout *output
	stderr io.Writer
	getenv func(string) string
	// environ are all variables, as NAME=value.
	environ func() []string
	// lookupEnv also tells an empty variable from none.
	lookupEnv func(string) (string, bool)
	// self is a path that runs this very program, also after its file was
	// replaced or removed.
	self string
	// color: stdout is a terminal that wants colours.
	color bool
}

func osEnv() env {
	forgetEmptyVariables()
	return env{
		stdin: os.Stdin, stdout: &output{Writer: os.Stdout}, stderr: os.Stderr,
		getenv: os.Getenv, environ: os.Environ, lookupEnv: os.LookupEnv,
		self:  "/proc/self/exe",
		color: isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

// forgetEmptyVariables makes an empty variable mean the same as none: the flag
// package takes an empty FIRSTHOP_UDP for false.
func forgetEmptyVariables() {
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, envPrefix) && strings.TrimSpace(value) == "" {
			os.Unsetenv(name)
		}
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// exitCode ends the program with a code after its output was written.
type exitCode bootstrap.ExitCode

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run is the program: it returns its exit code.
func run(ctx context.Context, e env, args []string) int {
	args = asPlugin(args)
	if len(args) == 2 && args[1] == proof.ChildCommand {
		if err := proof.RunChild(e.stdin, e.stdout); err != nil {
			fmt.Fprintln(e.stderr, "firsthop:", err)
			return int(bootstrap.ExitInternal)
		}
		return int(bootstrap.ExitOK)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	app := newApp(e)
	return e.finish(args, app.Commands, app.RunContext(ctx, args))
}

// advised is the text of an error, with what helps against a lack of rights
// where nobody has said so yet.
func advised(err error) string {
	const advice = "run as root"
	text := err.Error()
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 && !strings.Contains(text, advice) {
		text += ": " + advice
	}
	return text
}

// newLogger makes the one logger, which writes to stderr.
func newLogger(e env, c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, usagef("--log-level %q: want debug, info, warn or error", c.String("log-level"))
	}
	opts := &slog.HandlerOptions{Level: level}
	switch f := c.String("log-format"); f {
	case "text":
		return slog.New(slog.NewTextHandler(e.stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(e.stderr, opts)), nil
	default:
		return nil, usagef("--log-format %q: want text or json", f)
	}
}

func usagef(format string, args ...any) error {
	return &bootstrap.UsageError{Err: fmt.Errorf(format, args...)}
}
