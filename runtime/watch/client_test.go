package watch

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/rest"
)

// client-go's transport adds the token to whatever request a redirect makes.
func TestClientFollowsNoRedirect(t *testing.T) {
	var led atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusMovedPermanently))
	defer server.Close()
	clients, err := NewClients(&rest.Config{Host: server.URL, BearerToken: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	if err := clients.Core.Get().Resource("services").Do(t.Context()).Error(); err == nil || led.Load() != 0 {
		t.Errorf("error %v, and %d requests went elsewhere", err, led.Load())
	}
}
