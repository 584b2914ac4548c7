package sync

import (
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

// problems are what is ignored or wrong in objects, by Service.
type problems struct {
	byService map[types.NamespacedName][]services.Problem
	log       *slog.Logger
	limit     *rate.Limiter
}

// claimLogs bounds how many claims are logged a minute: tenants may make as many as they like.
const claimLogs = 20

func newProblems(log *slog.Logger) problems {
	return problems{map[types.NamespacedName][]services.Problem{}, log, rate.NewLimiter(rate.Every(time.Minute/claimLogs), claimLogs)}
}

// set takes all problems of a Service. It logs which claims on reserved addresses are new, and when the last is over, and
// which cluster IPs are left to the host.
func (p *problems) set(service types.NamespacedName, list []services.Problem) {
	reserved := func(p services.Problem) bool { return p.Reason == services.AddressReserved }
	before := p.byService[service]
	if p.byService[service] = list; len(list) == 0 {
		delete(p.byService, service)
	}
	for _, now := range list {
		if now.Reason == services.LeftToHost && !slices.Contains(before, now) && p.limit.Allow() {
			p.log.Info("a cluster IP is not served", "service", service.String(), "why", now.Message)
		}
		if reserved(now) && !slices.Contains(before, now) && p.limit.Allow() {
			p.log.Warn("a Service claims an address that is reserved for API servers: not served", "service", service.String(), "port", now.Port, "claim", now.Message)
		}
	}
	if slices.ContainsFunc(before, reserved) && !slices.ContainsFunc(list, reserved) && p.limit.Allow() {
		p.log.Info("a Service no longer claims an address of API servers", "service", service.String())
	}
}
