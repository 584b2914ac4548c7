package diagnose

import (
	"fmt"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/sysctl"
)

// KernelSetting is a setting of the kernel that this instance has changed.
type KernelSetting struct {
	Name   string `json:"name"` // as sysctl(8) has it
	Value  uint64 `json:"value"`
	Former uint64 `json:"former"`
	Ours   bool   `json:"ours"` // the value is the one that we have set: an uninstall restores the former one
}

func (s KernelSetting) String() string {
	if !s.Ours {
		return fmt.Sprintf("%s = %d, set by somebody after firsthop", s.Name, s.Value)
	}
	return fmt.Sprintf("%s = %d (before: %d)", s.Name, s.Value, s.Former)
}

// settingsIn are the settings of the kernel that a journal lists, as they are now.
func settingsIn(j *instance.Journal, root string) (out []KernelSetting) {
	at := sysctl.Of(root)
	for _, e := range sysctl.Recorded(j) {
		now, mine, err := at.Mine(e)
		if err != nil { // the kernel has it no more
			continue
		}
		out = append(out, KernelSetting{Name: sysctl.Dotted(e.Name), Value: now, Former: e.Former, Ours: mine})
	}
	return out
}
