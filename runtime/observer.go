package runtime

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

// observer is told what happens. It doesn't block, and calls nothing of the engine.
type observer interface {
	serviceChanged()
	sliceChanged(service types.NamespacedName, annotations map[string]string, gone bool)
	nodeChanged(*corev1.Node) // nil: it is deleted
	portsChanged(types.NamespacedName, []services.Port)
	addrsChanged([]netip.Addr)
	queued(time.Time)
	flush(queued time.Time) (done func(error))
}

// nobody is an observer for those who need none.
type nobody struct{}

func (nobody) serviceChanged() {}

func (nobody) sliceChanged(types.NamespacedName, map[string]string, bool) {}

func (nobody) nodeChanged(*corev1.Node) {}

func (nobody) portsChanged(types.NamespacedName, []services.Port) {}

func (nobody) addrsChanged([]netip.Addr) {}

func (nobody) queued(time.Time) {}

func (nobody) flush(time.Time) func(error) { return func(error) {} }
