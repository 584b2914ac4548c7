// Package nodeconf reads how the services of a node are started: the command
// lines of its systemd units and OpenRC scripts, with drop-ins, environment
// files, quoting and variables as systemd and a shell treat them, and the
// configuration files of k3s and RKE2.
//
// It executes nothing, follows no network address, and judges nothing: what
// the flags mean is the caller's business (natinit/apiserver).
//
//   - unitload.go: units, their search path and drop-ins (units/unitfile parses the files).
//   - exec.go, specifier.go: ExecStart= to an argument list.
//   - envfile.go: EnvironmentFile=.
//   - shell.go: what scripts of services assign and run, as package mvdan.cc/sh reads them.
//   - openrc.go: /etc/init.d and /etc/conf.d.
//   - commands.go: all of it; which command runs a program.
//   - flags.go: values of flags in an argument list.
//   - rancher.go: config.yaml and config.yaml.d of k3s and RKE2.
package nodeconf

// FS are the files of a host. Paths are as the host sees them.
type FS interface {
	// ReadFile reads a regular file.
	ReadFile(path string) ([]byte, error)
	// Glob lists the paths that match, in lexical order. Only the last element
	// is a pattern.
	Glob(pattern string) []string
}

// Command is one command line of a service.
type Command struct {
	// Service is the unit's name without its suffix, or that of the script.
	Service string
	// Path is the file that the command is written in.
	Path string
	Argv []string
	// Env is the environment that the service manager gives it.
	Env map[string]string
}
