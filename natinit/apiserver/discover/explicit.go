package discover

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

// Given is one setting: the flag ("--service-ips") or variable that it came
// in by, and its value.
type Given struct {
	Name  string
	Value string
}

func (g Given) source() apiserver.Source {
	switch {
	case g == savedGiven:
		return apiserver.SourceCache
	case strings.HasPrefix(g.Name, "-"):
		return apiserver.SourceFlags
	}
	return apiserver.SourceEnvironment
}

// Explicit is what the operator gave, parsed and judged.
type Explicit struct {
	Services  []netip.AddrPort
	Endpoints []apiserver.Endpoint

	// Kubeadm is what the file for kubeadm's --config says, nil if none is
	// given. Unlike the others it does not keep the API from being asked: once
	// kubeadm has run, that knows more servers than the file.
	Kubeadm *sources.Finding

	servicesBy, endpointsBy Given
}

// By names the flags or variables that the two settings came in by; "" stands
// for one that was not given.
func (e *Explicit) By() (services, endpoints string) { return e.servicesBy.Name, e.endpointsBy.Name }

// savedGiven stands for what was given to an earlier run.
var savedGiven = Given{Name: "given to an earlier run, and saved"}

// remember takes what was given when the addresses were saved, where nothing
// is given now.
func (e *Explicit) remember(k *apiserver.Known) {
	if len(e.Services) == 0 && k.ServicesCertainty == apiserver.Given {
		e.Services, e.servicesBy = k.Services, savedGiven
	}
	if len(e.Endpoints) == 0 && k.EndpointsCertainty == apiserver.Given {
		for _, ke := range k.Endpoints {
			e.Endpoints = append(e.Endpoints, ke.Endpoint)
		}
		e.endpointsBy = savedGiven
	}
}

// complete reports whether nothing needs to be discovered.
func (e *Explicit) complete() bool { return len(e.Services) > 0 && len(e.Endpoints) > 0 }

// ParseExplicit reads the two settings. Each may be given in several ways,
// the strongest first (flag, then environment); an empty or blank one is as
// good as not given. Errors are *apiserver.EntryError with the name of the
// flag or variable that holds the offending entry.
func ParseExplicit(services, endpoints []Given) (Explicit, error) {
	e := Explicit{servicesBy: firstGiven(services), endpointsBy: firstGiven(endpoints)}
	var err error
	if e.Services, err = apiserver.ParseServices(e.servicesBy.Value); err == nil {
		if e.Endpoints, err = apiserver.ParseEndpoints(e.endpointsBy.Value); err == nil {
			err = apiserver.Validate(e.Services, e.Endpoints)
		}
	}
	var ee *apiserver.EntryError
	if errors.As(err, &ee) {
		rename := strings.NewReplacer(apiserver.VarServices, e.servicesBy.Name, apiserver.VarEndpoints, e.endpointsBy.Name)
		ee.Variable, ee.Reason = rename.Replace(ee.Variable), rename.Replace(ee.Reason)
	}
	if err != nil {
		return Explicit{}, err
	}
	return e, nil
}

func firstGiven(in []Given) Given {
	for _, g := range in {
		if strings.TrimSpace(g.Value) != "" {
			return g
		}
	}
	return Given{}
}
