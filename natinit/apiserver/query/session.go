package query

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

// session is a client that talks to one address as one identity.
type session struct {
	base   string // URL of the API's root
	client *http.Client
	// anonymous is the same without the identity.
	anonymous *http.Client
	idle      []*http.Transport
}

func (s *session) close() {
	for _, t := range s.idle {
		t.CloseIdleConnections()
	}
}

// newSession builds the client. It does not connect.
func newSession(ask Config, cred *sources.Credential, at apiserver.Endpoint) (*session, error) {
	if cred.Server != "" && !strings.HasPrefix(cred.Server, "https://") && strings.Contains(cred.Server, "://") {
		return nil, errors.New("the kubeconfig's server is not https")
	}
	cfg := rest.CopyConfig(cred.Config)
	cfg.CAData, cfg.CAFile, cfg.Insecure = nil, "", true // verified below
	host, path := serverHost(cfg.Host)
	tlsCfg, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, err
	}
	tlsCfg.NextProtos = []string{"http/1.1"}
	if tlsCfg.ServerName == "" {
		tlsCfg.ServerName = host
	}
	// The address may be of another server than the one that the kubeconfig
	// names, so any of the names of an API server will do; the CA must be right.
	verify := ask.trust(cred).Verifier(at, nil, tlsCfg.ServerName)
	if verify == nil {
		return nil, errors.New("no CA certificate is known that it could be verified with")
	}
	tlsCfg.InsecureSkipVerify = true // verified by:
	tlsCfg.VerifyConnection = verify
	addr := at.Addr.String()
	transport := func(certificates bool) *http.Transport {
		c := tlsCfg.Clone()
		if certificates && cred.Plugin != nil {
			c.GetClientCertificate = cred.Plugin.ClientCertificate
		}
		if !certificates {
			c.Certificates, c.GetClientCertificate = nil, nil
		}
		return &http.Transport{
			TLSClientConfig:    c,
			DisableCompression: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return ask.Dial.OrPlain()(ctx, network, addr)
			},
		}
	}
	own, other := transport(true), transport(false)
	rt, err := rest.HTTPWrappersForConfig(cfg, own)
	if err != nil {
		return nil, err
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &session{
		base:      (&url.URL{Scheme: "https", Host: at.Addr.String(), Path: path}).String(),
		client:    &http.Client{Transport: rt, CheckRedirect: stay},
		anonymous: &http.Client{Transport: other, CheckRedirect: stay},
		idle:      []*http.Transport{own, other},
	}, nil
}

func serverHost(server string) (host, path string) {
	u, err := url.Parse(server)
	if err != nil {
		return "", ""
	}
	return u.Hostname(), strings.TrimSuffix(u.Path, "/")
}

// get reads one object. Any answer that is none is an answerError.
func get[T any](ctx context.Context, s *session, c *http.Client, path string) (object T, err error) {
	err = s.request(ctx, c, http.MethodGet, path, nil, &object)
	return object, err
}

// request sends a patch, or nothing, and reads the answer into an object.
func (s *session) request(ctx context.Context, c *http.Client, method, path string, patch []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, bytes.NewReader(patch))
	if err != nil {
		return err
	}
	if patch != nil {
		req.Header.Set("Content-Type", string(types.StrategicMergePatchType))
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "firsthop")
	resp, err := c.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return probe.Plain(err)
	}
	defer resp.Body.Close()
	const most = 4 * hostfs.MaxFile
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return probe.Plain(err)
	case len(b) > most:
		return fmt.Errorf("answer is larger than %d bytes", most)
	case resp.StatusCode != http.StatusOK:
		var st metav1.Status
		_ = json.Unmarshal(b, &st)
		return &answerError{resp.StatusCode, fmt.Sprintf("%d %s", resp.StatusCode, cmp.Or(apiserver.Clip(st.Message), http.StatusText(resp.StatusCode)))}
	}
	if err := json.Unmarshal(b, into); err != nil {
		return notUsable("answer is not what was asked for: %s", apiserver.FirstLine(err))
	}
	return nil
}

// answerError is an answer that is not what was asked for, in the API's own
// words where it has some.
type answerError struct {
	status  int
	message string
}

func (e *answerError) Error() string { return e.message }

func notUsable(format string, args ...any) error {
	return &answerError{http.StatusOK, fmt.Sprintf(format, args...)}
}

// status is that of an answer which is an error, 0 for any other error.
func status(err error) int {
	var a *answerError
	if errors.As(err, &a) {
		return a.status
	}
	return 0
}

// answered reports whether there was an answer at all.
func answered(err error) bool { return err == nil || status(err) != 0 }
