package credplugin

import (
	"crypto/tls"
	"net/http"
)

// Wrap makes a transport send the plugin's token. An answer that the API doesn't know it has the plugin run again for
// the next request.
func (p *Plugin) Wrap(next http.RoundTripper) http.RoundTripper { return &roundTripper{p, next} }

type roundTripper struct {
	plugin *Plugin
	next   http.RoundTripper
}

func (r *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	c, err := r.plugin.Get(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	if c.Token != "" && req.Header.Get("Authorization") == "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := r.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		r.plugin.Forget(c)
	}
	return resp, err
}

// WrappedRoundTripper is how client-go finds the transport below.
func (r *roundTripper) WrappedRoundTripper() http.RoundTripper { return r.next }

// ClientCertificate is for tls.Config.GetClientCertificate.
func (p *Plugin) ClientCertificate(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c, err := p.Get(info.Context())
	if err != nil {
		return nil, err
	}
	if c.Certificate == nil {
		return &tls.Certificate{}, nil
	}
	return c.Certificate, nil
}
