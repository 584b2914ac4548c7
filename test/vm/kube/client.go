package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Patience is how long anything may take on a machine that is emulated beside others.
const Patience = 12 * time.Minute

// Client asks the API server, as an administrator. Its methods fail the test.
type Client struct {
	t    testing.TB
	http *http.Client
}

// NewClient returns a client that asks the server's own address, and waits until the server is ready.
func NewClient(t testing.TB) *Client {
	t.Helper()
	h, err := httpClient()
	must(t, err)
	c := &Client{t, h}
	t.Cleanup(h.CloseIdleConnections)
	Await(t, "the API server to be ready", func() error { return ready(h, Server) })
	for _, namespace := range []string{"default", "kube-system"} { // which it makes a moment later
		Await(t, "the namespace "+namespace, func() error {
			if code, body := c.do(http.MethodGet, "/api/v1/namespaces/"+namespace, "", nil); code != http.StatusOK {
				return fmt.Errorf("%d: %s", code, body)
			}
			return nil
		})
	}
	return c
}

func httpClient() (*http.Client, error) {
	ca, err := os.ReadFile(filepath.Join(Dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(Dir, "admin.crt"), filepath.Join(Dir, "admin.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}}, nil
}

// ready asks an address of the API server for /readyz; nil: it is.
func ready(h *http.Client, address string) error {
	resp, err := h.Get("https://" + address + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// Create makes an object in a collection, as /api/v1/namespaces/default/services, and reads into what came of it,
// unless that is nil. What is there already is left.
func (c *Client) Create(path string, object, into any) {
	c.t.Helper()
	data, err := json.Marshal(object)
	must(c.t, err)
	code, body := c.do(http.MethodPost, path, "application/json", data)
	if code != http.StatusCreated && code != http.StatusConflict {
		c.t.Fatalf("create in %s: %d: %s", path, code, body)
	}
	if into != nil {
		must(c.t, json.Unmarshal(body, into))
	}
}

// Patch changes an object by a merge patch.
func (c *Client) Patch(path, patch string) {
	c.t.Helper()
	if code, body := c.do(http.MethodPatch, path, "application/merge-patch+json", []byte(patch)); code != http.StatusOK {
		c.t.Fatalf("patch %s: %d: %s", path, code, body)
	}
}

// Get reads an object.
func (c *Client) Get(path string, into any) {
	c.t.Helper()
	code, body := c.do(http.MethodGet, path, "", nil)
	if code != http.StatusOK {
		c.t.Fatalf("get %s: %d: %s", path, code, body)
	}
	must(c.t, json.Unmarshal(body, into))
}

func (c *Client) do(method, path, kind string, body []byte) (int, []byte) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "https://"+Server+path, bytes.NewReader(body))
	must(c.t, err)
	req.Header.Set("Accept", "application/json")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	must(c.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	must(c.t, err)
	return resp.StatusCode, answer
}

// Await waits until a condition holds, and fails the test with its last answer if it does not come to hold.
func Await(t testing.TB, what string, condition func() error) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			t.Logf("waited %v for %s", time.Since(began).Round(time.Millisecond), what)
			return
		}
		if time.Since(began) > Patience {
			t.Fatalf("wait for %s: %v", what, err)
		}
		<-tick.C
	}
}
