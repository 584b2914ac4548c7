package runtime

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit/credplugin"
)

// identity is who the runtime is for the API server, and where it asks.
type identity struct {
	*rest.Config
	plugin *credplugin.Plugin // nil if the credentials come from none
}

// newIdentity finds the credentials. A kubeconfig is named by root, so it is
// used wherever it is; its plugin runs only if nobody else may write it.
func newIdentity(cfg *Config) (*identity, error) {
	id := &identity{}
	var err error
	if cfg.Kubeconfig != "" {
		if cfg.Kubeconfig, err = filepath.Abs(cfg.Kubeconfig); err != nil {
			return nil, err
		}
		id.Config, err = clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	} else {
		id.Config, err = rest.InClusterConfig()
		if err != nil {
			err = fmt.Errorf("%w: give --kubeconfig where this is no pod", err)
		}
	}
	if err == nil {
		id.UserAgent = "firsthop/" + cfg.Version
		id.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // a proxy is for what leaves the cluster
		trusted := hostfs.FS{}.CheckTrusted(cfg.Kubeconfig)
		if trusted != nil && cfg.Kubeconfig != "" {
			cfg.Log.Warn("others than root may write the kubeconfig", "err", trusted)
		}
		id.plugin, err = credplugin.Take(id.Config, cfg.Kubeconfig, trusted)
	}
	if err != nil {
		return nil, fmt.Errorf("find credentials for the API server: %w", err)
	}
	return id, nil
}

// dialBy makes a configuration that uses a dialer.
func (id *identity) dialBy(dial func(ctx context.Context, network, address string) (net.Conn, error)) (*rest.Config, error) {
	rc := rest.CopyConfig(id.Config)
	if id.plugin == nil {
		rc.Dial = dial
		return rc, nil
	}
	// client-go asks a plugin for certificates only where it runs it itself.
	tlsConfig, err := rest.TLSConfigFor(rc)
	if err != nil {
		return nil, fmt.Errorf("find credentials for the API server: %w", err)
	}
	if tlsConfig != nil {
		tlsConfig.GetClientCertificate = id.plugin.ClientCertificate
	}
	rc.TLSClientConfig, rc.Proxy = rest.TLSClientConfig{}, nil
	rc.Transport = utilnet.SetTransportDefaults(&http.Transport{
		Proxy:               func(*http.Request) (*url.URL, error) { return nil, nil },
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 25,
		DialContext:         dial,
	})
	return rc, nil
}
