package watch

import (
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// Clients are the ways to the API groups that are used. client-go's own
// clientset would bring all others along (docs/decisions/0005).
type Clients struct {
	Core       rest.Interface
	Nodes      rest.Interface // of the same group; decodes slimNodes
	Discovery  rest.Interface
	Networking rest.Interface
}

// The rate of requests is no matter of ours: there are six watches.
const unlimited = -1

// NewClients makes clients of a configuration, which is not changed.
func NewClients(cfg *rest.Config) (Clients, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, addServiceCIDRs} {
		if err := add(scheme); err != nil {
			return Clients{}, fmt.Errorf("make a client for the API server: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	base := rest.CopyConfig(cfg)
	base.ContentType = runtime.ContentTypeProtobuf
	base.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	base.QPS = unlimited
	httpClient, err := rest.HTTPClientFor(base) // all groups share its connection
	if err != nil {
		return Clients{}, fmt.Errorf("make a client for the API server: %w", err)
	}
	// An API server leads nowhere else: our token goes to no address that it names.
	staying := *httpClient
	staying.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	nodes := runtime.NewScheme()
	nodes.AddKnownTypeWithName(corev1.SchemeGroupVersion.WithKind("Node"), &slimNode{})
	nodes.AddKnownTypeWithName(corev1.SchemeGroupVersion.WithKind("NodeList"), &slimNodeList{})
	metav1.AddToGroupVersion(nodes, corev1.SchemeGroupVersion)
	client := func(of *runtime.Scheme, gv schema.GroupVersion, path string) (rest.Interface, error) {
		c := rest.CopyConfig(base)
		c.NegotiatedSerializer = serializer.NewCodecFactory(of).WithoutConversion()
		c.GroupVersion, c.APIPath = &gv, path
		return rest.RESTClientForConfigAndClient(c, &staying)
	}
	var clients Clients
	if clients.Core, err = client(scheme, corev1.SchemeGroupVersion, "/api"); err == nil {
		clients.Nodes, err = client(nodes, corev1.SchemeGroupVersion, "/api")
	}
	if err == nil {
		clients.Discovery, err = client(scheme, discoveryv1.SchemeGroupVersion, "/apis")
	}
	if err == nil {
		clients.Networking, err = client(scheme, networkingv1.SchemeGroupVersion, "/apis")
	}
	if err != nil {
		return Clients{}, fmt.Errorf("make a client for the API server: %w", err)
	}
	return clients, nil
}

// addServiceCIDRs adds what is used of its group, and not all of it to every binary.
func addServiceCIDRs(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(networkingv1.SchemeGroupVersion, &networkingv1.ServiceCIDR{}, &networkingv1.ServiceCIDRList{})
	metav1.AddToGroupVersion(scheme, networkingv1.SchemeGroupVersion)
	return nil
}
