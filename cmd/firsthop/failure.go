package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bootstrap/uninstall"
)

// failure is what a command says that ends without a report of its own.
type failure struct {
	Error      string               `json:"error"`
	ExitCode   bootstrap.ExitCode   `json:"exit_code"`
	Dependents []diagnose.Dependent `json:"dependents,omitempty"` // of a refused uninstall
}

// finish ends the program: it says what failed, in the form that was asked for, and returns the exit code.
func (e env) finish(args []string, commands []*cli.Command, err error) int {
	var printed exitCode
	switch {
	case err == nil && e.stdout.err() != nil:
		err = fmt.Errorf("write the output: %w", e.stdout.err())
	case err == nil:
		return int(bootstrap.ExitOK)
	case errors.As(err, &printed):
		if failed := e.stdout.err(); failed != nil {
			fmt.Fprintln(e.stderr, "firsthop: write the output:", failed)
		}
		return int(printed)
	}
	f := failure{Error: advised(err), ExitCode: bootstrap.ExitCodeOf(err)}
	var stranded *uninstall.StrandedError
	if errors.As(err, &stranded) {
		f.Dependents = stranded.Dependents
	}
	var topic cli.ExitCoder
	if errors.As(err, &topic) { // cli's own: help for a command that does not exist
		f = failure{Error: unknownCommand(args[len(args)-1], commands), ExitCode: bootstrap.ExitUsage}
	}
	if !e.wantsJSON(args) {
		fmt.Fprintln(e.stderr, "firsthop:", f.Error)
		return int(f.ExitCode)
	}
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(f); err != nil {
		fmt.Fprintln(e.stderr, "firsthop:", f.Error)
	}
	return int(f.ExitCode)
}

// wantsJSON reports whether JSON was asked for, also by a command line that cannot be parsed.
func (e env) wantsJSON(args []string) bool {
	format := e.getenv(envPrefix + "OUTPUT")
	for i, arg := range args {
		name, value, given := strings.Cut(arg, "=")
		switch name {
		case "-o", "--o", "-output", "--output":
			if !given && i+1 < len(args) {
				value = args[i+1]
			}
			format = value
		}
	}
	return format == "json"
}
