package bootstrap

import (
	"fmt"

	"github.com/firsthop/firsthop/kernel/memory"
)

// enoughMemory is what a first init was seen to need, maps of the default size
// included: with 32 MiB it is done, with 24 the kernel ends it at some point,
// and with 16 it can't make the maps.
const enoughMemory = 32 << 20

// warnOfMemory says that a limit is too small before anything else happens: who
// is killed for it (exit code 137) has no time to, and what was logged before is
// all that is left. It is no failure, as a second run makes no maps and needs
// less.
func warnOfMemory(root string) (warning string) {
	limit, file := memory.Limit(root)
	if limit == 0 || limit >= enoughMemory {
		return ""
	}
	return fmt.Sprintf("the memory limit of this process is %d MiB (%s), and %d MiB are needed, maps included: give it more if it is killed (exit code 137) or can't create maps",
		limit>>20, file, enoughMemory>>20)
}
