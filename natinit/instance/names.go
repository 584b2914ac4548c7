package instance

// Where an instance keeps its files on the host unless it is told otherwise.
const (
	DefaultStateDir = "/var/lib/firsthop"
	DefaultRunDir   = "/run/firsthop"
)

// The files of an instance in its run directory.
const (
	// LockName is locked (flock) by every entry point before it changes anything. The kernel releases it when its
	// holder dies, however it dies.
	LockName = "lock"
	// RuntimeLockName is locked by a runtime for as long as it lives, and says its pid.
	RuntimeLockName = "runtime.lock"
	// RuntimeSocketName is where a runtime answers the command line.
	RuntimeSocketName = "runtime.sock"
	// StatusName keeps the last report of the init stage.
	StatusName = "status.json"
)
