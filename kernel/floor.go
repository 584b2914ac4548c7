package kernel

import "fmt"

// The minimums. Each is a kernel on which everything needed was seen to work.
var (
	mainlineFloor = Version{Major: 5, Minor: 3} // Ubuntu 20.04 has 5.4
	rhel8Floor    = el82                        // 4.18.0-193, RHEL 8.2
)

// Floor is the minimum that a host's kernel is measured against.
type Floor struct {
	Family  string `json:"family"`            // whose minimum this is: mainline, Ubuntu, RHEL 8
	Minimum string `json:"minimum"`           // in words
	Why     string `json:"why,omitempty"`     // how the family was recognised, where it is not mainline
	Met     bool   `json:"met"`               // the release is at the minimum or above
	Unknown bool   `json:"unknown,omitempty"` // the release could not be read
}

// floorOf finds the minimum for a host and compares.
func floorOf(h Host) Floor {
	f := Floor{Family: "mainline", Minimum: mainlineFloor.String()}
	if h.Release.Version.IsZero() {
		f.Unknown = true
		return f
	}
	el, why := h.EL()
	switch {
	case el == 8 && h.Release.Version == elVersion:
		f.Family, f.Why = "RHEL 8", why
		f.Minimum = fmt.Sprintf("%s.0-%d (RHEL 8.2)", elVersion, rhel8Floor[0])
		f.Met = compareNumbers(h.Release.Build, rhel8Floor) >= 0
		return f
	case h.Vendor == "ubuntu" && h.Release.Flavour != "":
		f.Family, f.Why = "Ubuntu", "the kernel's build names Ubuntu"
		f.Minimum = mainlineFloor.String() + " (Ubuntu 20.04 has 5.4)"
	}
	f.Met = h.Release.AtLeast(mainlineFloor)
	return f
}
