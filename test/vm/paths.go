package vm

import (
	"fmt"
	"slices"
	"strings"
)

// Path is a chain of boots of one disk, which nothing was done to before the first.
type Path struct {
	Name    string
	Systems []string // names of Systems; none is all
	Short   bool     // make test-vm, and so CI, takes it too; make test-boot takes all
	// Packages are of Debian, with all that they need, besides those that every system has. Their scripts are not run.
	Packages []string
	Modules  []string // kernel modules besides systemModules; what is absent may be built in
	Cmdline  string   // for the kernel, in every boot
	Stages   []Stage  // after one that did not pass, the rest has no meaning
}

// Stage is one boot of a system: what is tested in it, and how it ends.
type Stage struct {
	Suite
	Cut     bool   // the power is cut at the end; otherwise the system is shut down
	Cmdline string // for the kernel; units can depend on it (ConditionKernelCommandLine=)
	// Put is what the system finds below /run in this boot: paths below /run, and files or directories below the
	// repository that are copied to them. What is below vm/ costs its memory once only: it is for what is large.
	Put map[string]string
}

// Paths are those that make test-boot boots.
var Paths = slices.Concat(bootPaths, packagePaths, runtimePaths, containerPaths)

// On tells whether a path is for a system.
func (p Path) On(system string) bool {
	return len(p.Systems) == 0 || slices.Contains(p.Systems, system)
}

// SelectPaths returns the paths of a comma-separated list, all for an empty one.
func SelectPaths(list string) ([]Path, error) {
	if list == "" {
		return Paths, nil
	}
	var selected []Path
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(Paths, func(p Path) bool { return p.Name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("find the path %q: see Paths for those that there are", name)
		}
		selected = append(selected, Paths[i])
	}
	return selected, nil
}

// ShortPaths are those that make test-vm takes.
func ShortPaths() (short []Path) {
	for _, p := range Paths {
		if p.Short {
			short = append(short, p)
		}
	}
	return short
}

// SelectSystems returns the systems of a comma-separated list, all for an empty one.
func SelectSystems(list string) ([]System, error) {
	if list == "" {
		return Systems, nil
	}
	var selected []System
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(Systems, func(s System) bool { return s.Name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("find the system %q: see systems.go for those that there are", name)
		}
		selected = append(selected, Systems[i])
	}
	return selected, nil
}
