package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"
)

// txnURL is where etcd carries out transactions, for those who are on the hub.
const txnURL = "http://127.0.0.1:2379/v3/kv/txn"

// copier makes Services as the API server would, by writing copies of what it made of the first one to its etcd. To
// create them all by the API server would take an hour for 30,000: its allocator counts all addresses that are in use
// for each one that it gives out (ipallocator.Allocator.Used, for a metric).
type copier struct {
	http  *http.Client
	codec *protobuf.Serializer
	svc   *corev1.Service
	slice *discoveryv1.EndpointSlice
	ip    *networkingv1.IPAddress
}

// newCopier creates Service 0 by the API server.
func (w *world) newCopier() *copier {
	w.t.Helper()
	ctx := w.t.Context()
	ports := []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: serviceName(0), Namespace: metav1.NamespaceDefault},
		Spec: corev1.ServiceSpec{ClusterIP: vip(0), Ports: ports}}
	c := &copier{
		http:  &http.Client{Transport: &http.Transport{DialContext: w.c.Hub.DialContext, MaxIdleConnsPerHost: writers}},
		codec: protobuf.NewSerializer(scheme.Scheme, scheme.Scheme),
	}
	w.t.Cleanup(c.http.CloseIdleConnections)
	var err error
	c.svc, err = w.c.Client.CoreV1().Services(svc.Namespace).Create(ctx, svc, metav1.CreateOptions{})
	must(w.t, err)
	c.slice, err = w.c.Client.DiscoveryV1().EndpointSlices(svc.Namespace).Create(ctx, sliceOf(0, oldBackends), metav1.CreateOptions{})
	must(w.t, err)
	c.ip, err = w.c.Client.NetworkingV1().IPAddresses().Get(ctx, vip(0), metav1.GetOptions{})
	must(w.t, err)
	c.svc.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	c.slice.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
	c.ip.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"}
	return c
}

// grow makes Services until there are size, each with a slice of the old backends.
func (w *world) grow(size int) {
	w.t.Helper()
	begin := time.Now()
	if w.services == 0 {
		w.copier = w.newCopier()
		w.services = 1
	}
	var next atomic.Int64
	next.Store(int64(w.services))
	errs := make(chan error, writers)
	for range writers {
		go func() {
			for i := int(next.Add(1) - 1); i < size; i = int(next.Add(1) - 1) {
				if err := w.copier.copy(w.t.Context(), i); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		must(w.t, <-errs)
	}
	w.services = max(w.services, size)
	w.opts.Log("%d Services after %.1f s", w.services, time.Since(begin).Seconds())
}

// copy makes the Service with a number. Its objects come with one revision: there is one of each kind, as watches of a
// kind rely on revisions that differ.
func (c *copier) copy(ctx context.Context, i int) error {
	svc, slice, ip := c.svc.DeepCopy(), c.slice.DeepCopy(), c.ip.DeepCopy()
	rename := func(o *metav1.ObjectMeta, name string) {
		o.Name, o.UID, o.CreationTimestamp, o.ResourceVersion = name, uuid.NewUUID(), metav1.Now(), ""
	}
	rename(&svc.ObjectMeta, serviceName(i))
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = vip(i), []string{vip(i)}
	rename(&slice.ObjectMeta, serviceName(i)+"-1")
	slice.Labels = sliceOf(i, nil).Labels
	rename(&ip.ObjectMeta, vip(i))
	ip.Spec.ParentRef.Name = serviceName(i)

	type put struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	}
	type op struct {
		Put put `json:"requestPut"`
	}
	var txn struct {
		Success []op `json:"success"`
	}
	for key, object := range map[string]runtime.Object{
		"/registry/services/specs/default/" + svc.Name:   svc,
		"/registry/endpointslices/default/" + slice.Name: slice,
		"/registry/ipaddresses/" + ip.Name:               ip,
	} {
		value, err := runtime.Encode(c.codec, object)
		if err != nil {
			return err
		}
		txn.Success = append(txn.Success, op{put{[]byte(key), value}})
	}
	return c.post(ctx, txn)
}

func (c *copier) post(ctx context.Context, txn any) error {
	body, err := json.Marshal(txn)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, txnURL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if said, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("write to etcd: %s: %s (%v)", resp.Status, said, err)
	}
	return nil
}
