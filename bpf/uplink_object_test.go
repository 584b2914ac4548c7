package bpf

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// uplinkHelpers are what programs at uplinks may call on the floor, and which kernel brought each to tc programs.
var uplinkHelpers = map[asm.BuiltinFunc]string{
	asm.FnMapLookupElem: "4.1", asm.FnMapUpdateElem: "4.1", asm.FnKtimeGetNs: "4.1", asm.FnGetPrandomU32: "4.1",
	asm.FnSkbStoreBytes: "4.1", asm.FnL3CsumReplace: "4.1", asm.FnL4CsumReplace: "4.1", asm.FnSkbLoadBytes: "4.5",
	asm.FnCsumDiff: "4.6", asm.FnRedirect: "4.2", asm.FnSkbChangeTail: "4.9", asm.FnSkbPullData: "4.9",
	asm.FnCsumUpdate: "4.9", asm.FnSkbAdjustRoom: "4.13; between the link's header and the network's 5.2",
}

func TestUplinksCallOnlyHelpersOfTheFloor(t *testing.T) {
	used := map[asm.BuiltinFunc]bool{}
	for _, h := range UplinkHooks() {
		spec, _, err := uplinkObject(h)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range spec.Programs {
			for _, ins := range p.Instructions {
				if !ins.IsBuiltinCall() {
					continue
				}
				fn := asm.BuiltinFunc(ins.Constant)
				used[fn] = true
				if _, ok := uplinkHelpers[fn]; !ok {
					t.Errorf("%s calls %v, which the floor may lack", h.Program(), fn)
				}
			}
		}
	}
	for fn := range uplinkHelpers {
		if !used[fn] {
			t.Errorf("nothing calls %v", fn)
		}
	}
}

func TestUplinkHooksTranslateTheWayBackFirst(t *testing.T) {
	names := []string{}
	for _, h := range UplinkHooks() {
		names = append(names, h.Name)
	}
	if !slices.Equal(names, []string{"to_uplink", "from_uplink"}) {
		t.Errorf("hooks are %v", names)
	}
}
