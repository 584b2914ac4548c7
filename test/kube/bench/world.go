package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/kube/cluster"
)

// Options say what to measure.
type Options struct {
	Sizes   []int         // numbers of Services, ascending
	Pairs   int           // of bursts
	Burst   time.Duration // how long one is
	Starts  int           // of each contender, with ChangeSize Services; with others there is one
	Changes int           // of endpoints, one after the other, with firsthop
	Slow    int           // the same with each kube-proxy, whose changes take seconds
	Many    int           // changes in a row
	Pace    int           // of them, a second
	// ChangeSize is the number of Services at which changes are measured.
	ChangeSize int
	Only       []string     // of the contenders; nil for all
	Firsthop   string       // path of the program
	Connector  string       // path of the program
	Keep       func(Result) // is told what there is after each size; nil for nobody
	Log        func(format string, args ...any)
}

// world is a cluster with its contenders.
type world struct {
	t          testing.TB
	opts       Options
	c          *cluster.Cluster
	contenders []*contender
	services   int // that there are
	copier     *copier
	changed    int // of them, from the first on
}

func newWorld(t testing.TB, opts Options) *world {
	w := &world{t: t, opts: opts, c: cluster.New(t, cluster.Config{})}
	for _, name := range contenders {
		if len(opts.Only) > 0 && !slices.Contains(opts.Only, name) {
			continue
		}
		w.contenders = append(w.contenders, newContender(t, w.c, name, opts.Firsthop, opts.Connector))
	}
	return w
}

// vip is the address of a Service by its number.
func vip(i int) string { return fmt.Sprintf("10.96.%d.%d", 16+i/250, 1+i%250) }

// target is where a Service is connected to.
func target(i int) string { return vip(i) + ":80" }

func serviceName(i int) string { return fmt.Sprintf("bench-%05d", i) }

// writers is how many requests are made at once.
const writers = 24

// sliceOf is the slice of a Service.
func sliceOf(i int, backends []string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: serviceName(i) + "-1", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: serviceName(i)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(backendPort))}},
	}
	for _, b := range backends {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{b}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
	}
	return s
}

// change leads a Service, by its number, to the new backends.
func (w *world) change(ctx context.Context, i int) error {
	slice := sliceOf(i, newBackends)
	_, err := w.c.Client.DiscoveryV1().EndpointSlices(slice.Namespace).Update(ctx, slice, metav1.UpdateOptions{})
	return err
}

// load is what the machine has to do.
func load() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}
