package mounts

import "testing"

// stageNamed finds a stage. (A function, not a map: the stages refer to it.)
func stageNamed(name string) func(*testing.T) {
	switch name {
	case "bpffs states":
		return stageBPFFSStates
	case "bpffs lifecycle":
		return stageBPFFSLifecycle
	case "bpffs race":
		return stageBPFFSRace
	case "bpffs ensure":
		return stageBPFFSEnsure
	case "bpffs settle":
		return stageBPFFSSettle
	case "table only":
		return stageTableOnly
	case "table only child":
		return stageTableOnlyChild
	case "node":
		return stageNode
	case "container":
		return stageContainer
	case "pause":
		return stagePause
	case "move_mount refused":
		return stageMoveMountRefused
	case "handle refused":
		return stageHandleRefused
	case "move_mount":
		return stageMoveMount
	case "cgroup node":
		return stageCgroupNode
	case "cgroup container":
		return stageCgroupContainer
	case "cgroup unsure":
		return stageCgroupUnsure
	case "cgroup top":
		return stageCgroupTop
	}
	return nil
}
