package services

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

// claims say which Service has which frontend.
type claims struct {
	vips
	reserved reserved
	holder   map[bpf.FrontendKey]claim
	rivals   map[bpf.FrontendKey][]claim // of frontends with several claims, the holder's first
}

// claim is a Service's wish for a frontend.
type claim struct {
	by   *entry
	kind Kind
}

func newClaims() claims {
	return claims{vips: newVIPs(), holder: map[bpf.FrontendKey]claim{}, rivals: map[bpf.FrontendKey][]claim{}}
}

// compare puts the better claim first. The API service's is the best.
func (c claim) compare(o claim) int {
	if api := c.by.name == APIService; api != (o.by.name == APIService) {
		if api {
			return -1
		}
		return 1
	}
	mine, theirs := c.kind != ClusterIP, o.kind != ClusterIP
	switch {
	case mine != theirs && theirs:
		return -1
	case mine != theirs:
		return 1
	}
	a, b := c.by.svc.CreationTimestamp, o.by.svc.CreationTimestamp
	return cmp.Or(a.Compare(b.Time), compareNames(c.by.name, o.by.name))
}

func compareNames(a, b types.NamespacedName) int {
	if a.Namespace != b.Namespace {
		return strings.Compare(a.Namespace, b.Namespace)
	}
	return strings.Compare(a.Name, b.Name)
}

// sameClaims reports whether two lists of Ports claim the same.
func sameClaims(a, b []Port) bool {
	return slices.EqualFunc(a, b, func(x, y Port) bool {
		return slices.Equal(x.Frontends, y.Frontends) && slices.Equal(x.Kinds, y.Kinds)
	})
}

// contested reports whether an entry claims what another claims, too.
func (c *claims) contested(e *entry) bool {
	if len(c.rivals) == 0 {
		return false
	}
	for i := range e.asked {
		for _, k := range e.asked[i].Frontends {
			if len(c.rivals[k]) > 0 {
				return true
			}
		}
	}
	return false
}

// replace takes back what an entry claimed and claims what it asks for now.
// affected are others whose frontends may have changed by it.
func (c *claims) replace(e *entry, asked []Port) (affected []*entry) {
	for i := range e.asked {
		for j, k := range e.asked[i].Frontends {
			affected = c.release(k, e, affected)
			affected = c.count(e, k, e.asked[i].Kinds[j], -1, affected)
		}
	}
	for i := range asked {
		for j, k := range asked[i].Frontends {
			affected = c.claim(k, claim{e, asked[i].Kinds[j]}, affected)
			affected = c.count(e, k, asked[i].Kinds[j], +1, affected)
		}
	}
	return affected
}

func (c *claims) release(k bpf.FrontendKey, e *entry, affected []*entry) []*entry {
	rivals := c.rivals[k]
	if len(rivals) == 0 {
		delete(c.holder, k)
		return affected
	}
	rest := slices.DeleteFunc(rivals, func(r claim) bool { return r.by == e })
	c.holder[k] = rest[0]
	c.rivals[k] = rest
	if len(rest) == 1 {
		delete(c.rivals, k)
	}
	return appendAll(affected, rest)
}

func (c *claims) claim(k bpf.FrontendKey, mine claim, affected []*entry) []*entry {
	has, ok := c.holder[k]
	if !ok {
		c.holder[k] = mine
		return affected
	}
	rivals := c.rivals[k]
	if len(rivals) == 0 {
		rivals = []claim{has}
	}
	at, _ := slices.BinarySearchFunc(rivals, mine, claim.compare)
	rivals = slices.Insert(rivals, at, mine)
	c.rivals[k], c.holder[k] = rivals, rivals[0]
	return appendAll(affected, rivals)
}

// appendAll adds all rivals: the holder for what it has, the others for whom they lost it to.
func appendAll(affected []*entry, rivals []claim) []*entry {
	for _, r := range rivals {
		affected = append(affected, r.by)
	}
	return affected
}

// granted is what an entry asks for without the frontends that are reserved or
// that others have, with a Problem for each of those.
func (c *claims) granted(e *entry) (wanted []Port, lost []Problem) {
	if !c.contested(e) && !c.reserved.denies(e) {
		return c.reserved.open(c.of(e.asked)), nil
	}
	for i := range e.asked {
		p := e.asked[i]
		p.keep(func(k bpf.FrontendKey) bool { return c.holder[k].by == e && c.reserved.denied(e, k) == "" })
		if len(p.Frontends) > 0 {
			wanted = append(wanted, p)
		}
		for j, k := range e.asked[i].Frontends {
			if of := c.reserved.denied(e, k); of != "" {
				lost = append(lost, refused(&e.asked[i], j, AddressReserved, "is not served: it is the address of", of))
			} else if by := c.holder[k].by; by != e {
				lost = append(lost, refused(&e.asked[i], j, FrontendTaken, "is served for", by.name))
			}
		}
	}
	return c.reserved.open(c.of(wanted)), lost
}
