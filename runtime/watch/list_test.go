package watch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// encode is how an API server sends an object.
func encode(t testing.TB, kind string, obj runtime.Object) []byte {
	t.Helper()
	obj.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	var buf bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(obj, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// fullService is one with something in many fields.
func fullService(name string) corev1.Service {
	managed := metav1.ManagedFieldsEntry{Manager: "kubectl", Operation: metav1.ManagedFieldsOperationUpdate,
		FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)}
	return corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "u", ResourceVersion: "7", Labels: map[string]string{"a": "b"},
			Finalizers: []string{"x"}, DeletionGracePeriodSeconds: new(int64(5)), ManagedFields: []metav1.ManagedFieldsEntry{managed, managed}},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, HealthCheckNodePort: 1,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30000, Protocol: corev1.ProtocolTCP}}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}}},
	}
}

func someList(n int) *corev1.ServiceList {
	l := &corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: "42"}}
	for i := range n {
		l.Items = append(l.Items, fullService(fmt.Sprint("s", i)))
	}
	return l
}

func readAll(body io.Reader) (got []corev1.Service, version string, err error) {
	version, err = readList(body, newObject[corev1.Service], func(o object) error {
		got = append(got, *o.(*corev1.Service))
		return nil
	})
	return got, version, err
}

func TestReadList(t *testing.T) {
	for _, n := range []int{0, 1, 300} {
		want := someList(n)
		body := encode(t, "ServiceList", want)
		for name, r := range map[string]io.Reader{"at once": bytes.NewReader(body), "in halves": iotest.HalfReader(bytes.NewReader(body))} {
			got, version, err := readAll(r)
			if err != nil || version != "42" {
				t.Fatalf("%d objects %s: version %q, %v", n, name, version, err)
			}
			for i := range want.Items {
				want.Items[i].ManagedFields, want.Items[i].Finalizers = nil, nil
			}
			if diff := cmp.Diff(slices.Concat(want.Items), slices.Concat(got)); diff != "" {
				t.Errorf("%d objects %s: %s", n, name, diff)
			}
		}
	}
}

func TestReadListOfSlices(t *testing.T) {
	want := discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "a-1"}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}}
	list := &discoveryv1.EndpointSliceList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []discoveryv1.EndpointSlice{want}}
	var got []object
	_, err := readList(bytes.NewReader(encode(t, "EndpointSliceList", list)), newObject[discoveryv1.EndpointSlice], func(o object) error {
		got = append(got, o)
		return nil
	})
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if diff := cmp.Diff(&want, got[0].(*discoveryv1.EndpointSlice)); diff != "" {
		t.Error(diff)
	}
}

func TestReadListThatEndsEarly(t *testing.T) {
	body := encode(t, "ServiceList", someList(2))
	const after = 4 // two empty fields of runtime.Unknown
	for n := range body[:len(body)-after] {
		if _, version, err := readAll(bytes.NewReader(body[:n])); err == nil {
			t.Errorf("after %d of %d bytes: version %q, no error", n, len(body), version)
		}
	}
}

func TestReadListNotInProtobuf(t *testing.T) {
	if _, _, err := readAll(strings.NewReader(`{"kind":"ServiceList"}`)); !errors.Is(err, errNotProtobuf) {
		t.Error(err)
	}
}

func TestReadListWithoutAVersion(t *testing.T) {
	l := someList(1)
	l.ResourceVersion = ""
	if _, _, err := readAll(bytes.NewReader(encode(t, "ServiceList", l))); err == nil {
		t.Error("no error")
	}
}

// FuzzReadList: whatever comes, it ends, and what is taken is what Kubernetes' own decoder takes.
func FuzzReadList(f *testing.F) {
	f.Add(encode(f, "ServiceList", someList(2)))
	f.Add([]byte(protobufMagic + "\x12\x04\x12\x02\x0a\x00"))
	f.Add([]byte(protobufMagic + "\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Add([]byte(protobufMagic))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, _, err := readAll(bytes.NewReader(body))
		if err != nil {
			return
		}
		var unknown runtime.Unknown
		var want corev1.ServiceList
		if unknown.Unmarshal(body[len(protobufMagic):]) != nil || want.Unmarshal(unknown.Raw) != nil {
			return // of what nobody sends, more may be taken
		}
		if len(want.Items) != len(got) {
			t.Errorf("%d objects, want %d", len(got), len(want.Items))
		}
	})
}

// A proxy may do what the API server does only when it is asked to.
func TestReadListInPages(t *testing.T) {
	l := someList(3)
	l.Continue = "more"
	if got, _, err := readAll(bytes.NewReader(encode(t, "ServiceList", l))); !errors.Is(err, errPages) || len(got) > 0 {
		t.Errorf("%d Services, %v", len(got), err)
	}
}
