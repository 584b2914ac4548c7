package units

import "context"

// Manager is the part of an init system's manager that we use. There are two:
// systemd over D-Bus, and the files alone. Both keep to what systemctl does.
type Manager interface {
	// Version is what the manager says of itself; "" from files.
	Version(ctx context.Context) (string, error)
	// Enable makes the links that the unit's [Install] section asks for.
	// ErrMasked and ErrNotFound are promised.
	Enable(ctx context.Context, name string) error
	// Disable removes all links to the unit.
	Disable(ctx context.Context, name string) error
	// Reload makes the manager read the unit files again.
	Reload(ctx context.Context) error
	// Stop ends an active unit; one that is not active is no error.
	Stop(ctx context.Context, name string) error
	// State is what the manager makes of a unit. A unit without a file is
	// LoadState "not-found", not an error.
	State(ctx context.Context, name string) (State, error)
	Close()
}

// State is a unit in systemd's words (org.freedesktop.systemd1(5)).
type State struct {
	LoadState        string `json:"load_state"`      // loaded, not-found, bad-setting, error, masked
	UnitFileState    string `json:"unit_file_state"` // enabled, disabled, static, masked, or "" without a file
	FragmentPath     string `json:"fragment_path,omitempty"`
	ActiveState      string `json:"active_state,omitempty"` // "" where there is no manager to ask
	NeedDaemonReload bool   `json:"need_daemon_reload,omitempty"`
}
