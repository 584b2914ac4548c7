package bootstrap

import "errors"

// ExitCode is what the process ends with. The values are API.
type ExitCode int

// The exit codes.
const (
	ExitOK       ExitCode = 0  // done, or nothing to do here
	ExitInternal ExitCode = 1  // lock, lack of rights, or a fault of ours
	ExitBPFFS    ExitCode = 2  // no bpffs that can be used
	ExitCgroup   ExitCode = 3  // no cgroup2 that can be used
	ExitAttach   ExitCode = 4  // seeding or attaching failed
	ExitKernel   ExitCode = 5  // kernel not supported, and no kube-proxy to fall back to
	ExitProof    ExitCode = 6  // no connection gets through
	ExitNotFound ExitCode = 7  // no API server address known
	ExitStranded ExitCode = 8  // uninstall refused: this node needs the Service IP to start
	ExitUsage    ExitCode = 64 // bad flag or environment variable
)

// UsageError marks a bad setting: exit code 64, also with --best-effort.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// ExitError carries an exit code that differs from the step's own.
type ExitError struct {
	Code ExitCode
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCodeOf gives the exit code of an error that a command ends with.
func ExitCodeOf(err error) ExitCode { return codeOf(err, ExitInternal) }

// codeOf gives the exit code of a failed step's error.
func codeOf(err error, step ExitCode) ExitCode {
	var usage *UsageError
	var other *ExitError
	switch {
	case errors.As(err, &usage):
		return ExitUsage
	case errors.As(err, &other):
		return other.Code
	}
	return step
}
