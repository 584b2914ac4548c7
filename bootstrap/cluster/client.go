package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Manager is the name under which everything is applied (the field manager of server-side apply).
const Manager = "firsthop"

const (
	requestTimeout = 30 * time.Second
	// retryFor is how long a request is repeated that met no API server, or one that is in trouble.
	retryFor   = time.Minute
	retryPause = 500 * time.Millisecond
	// mostAnswer bounds an answer: the pods of a node's logs are far smaller.
	mostAnswer = 64 << 20
)

// client asks the API with plain requests. client-go's clientsets would cost every start of the program milliseconds
// (docs/decisions/0005).
type client struct {
	http *http.Client
	base *url.URL
}

func newClient(cfg *rest.Config) (*client, error) {
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client for the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client for the API server: %w", err)
	}
	staying := *h // an API server leads nowhere else: no credentials go to an address that it names
	staying.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{&staying, base}, nil
}

// request is one to the API. Everything that is asked here may be repeated: its effect is the same.
type request struct {
	method, path string
	query        url.Values
	kind         string // content type of the body
	body         any    // []byte as it is, anything else as JSON
	into         any    // nil: the answer is not read; *[]byte: as it is
	once         bool   // it is not repeated
}

// do sends a request until it is answered. Errors of the API match package api/errors.
func (c *client) do(ctx context.Context, r request) error {
	body, raw := r.body.([]byte)
	if !raw && r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return err
		}
	}
	for end := time.Now().Add(retryFor); ; {
		again, err := c.try(ctx, r, body)
		if err == nil || !again || r.once || time.Now().After(end) {
			return err
		}
		if wait(ctx, retryPause) != nil {
			return err
		}
	}
}

// wait returns an error if the context ends before the time is over.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// try sends a request once. again: another time it may be answered.
func (c *client) try(ctx context.Context, r request, body []byte) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + r.path
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "application/json, */*")
	if body != nil {
		req.Header.Set("Content-Type", r.kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return mayRecover(err), fmt.Errorf("ask the API server at %s: %w", c.base.Host, plain(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return true, fmt.Errorf("read the answer of the API server at %s: %w", c.base.Host, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		switch resp.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			again = true
		}
		return again, statusError(r, resp, answer)
	}
	switch into := r.into.(type) {
	case nil:
	case *[]byte:
		*into = answer
	default:
		if err := json.Unmarshal(answer, into); err != nil {
			return false, fmt.Errorf("%s %s: the answer is not what was asked for: %w", r.method, r.path, err)
		}
	}
	return false, nil
}

// statusError is the error of an answer, as client-go has it.
func statusError(r request, resp *http.Response, answer []byte) error {
	var st metav1.Status
	if json.Unmarshal(answer, &st) == nil && st.Kind == "Status" && st.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: st}
	}
	text := strings.TrimSpace(string(answer[:min(len(answer), 200)]))
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: int32(resp.StatusCode), Reason: reasonOf(resp.StatusCode),
		Message: fmt.Sprintf("%s %s: %s: %s", r.method, r.path, resp.Status, text),
	}}
}

func reasonOf(code int) metav1.StatusReason {
	switch code {
	case http.StatusNotFound:
		return metav1.StatusReasonNotFound
	case http.StatusForbidden:
		return metav1.StatusReasonForbidden
	case http.StatusUnauthorized:
		return metav1.StatusReasonUnauthorized
	case http.StatusConflict:
		return metav1.StatusReasonConflict
	}
	return metav1.StatusReasonUnknown
}

func (c *client) get(ctx context.Context, path string, into any) error {
	return c.do(ctx, request{method: http.MethodGet, path: path, into: into})
}

// list reads a collection, of what has the labels.
func (c *client) list(ctx context.Context, path, labels string, into any) error {
	q := url.Values{}
	if labels != "" {
		q.Set("labelSelector", labels)
	}
	return c.do(ctx, request{method: http.MethodGet, path: path, query: q, into: into})
}

// optional reads an object that need not be there.
func (c *client) optional(ctx context.Context, path string, into any) (there bool, err error) {
	err = c.get(ctx, path, into)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// remove deletes an object, if it is there. Pods are ended at once.
func (c *client) remove(ctx context.Context, path string, at *int64) error {
	var body any = metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{Kind: "DeleteOptions", APIVersion: "v1"}, GracePeriodSeconds: at}
	err := c.do(ctx, request{method: http.MethodDelete, path: path, kind: "application/json", body: body})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// merge changes an object by a merge patch.
func (c *client) merge(ctx context.Context, path string, patch any) error {
	return c.do(ctx, request{method: http.MethodPatch, path: path, kind: "application/merge-patch+json", body: patch, query: url.Values{"fieldManager": {Manager}}})
}

// mayRecover reports whether what has met no API server may meet one later: not where another server answers, or the
// name is unknown.
func mayRecover(err error) bool {
	var cert *tls.CertificateVerificationError
	var name *net.DNSError
	return !errors.As(err, &cert) && !(errors.As(err, &name) && name.IsNotFound)
}

// plain is what of net/http's error is not the URL.
func plain(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}
