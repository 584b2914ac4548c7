package runtime

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// clientConfig is the identity that the runtime has, and where it asks.
func clientConfig(cfg *Config) (*rest.Config, error) {
	var rc *rest.Config
	var err error
	if cfg.Kubeconfig != "" {
		rc, err = clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	} else {
		rc, err = rest.InClusterConfig()
		if err != nil {
			err = fmt.Errorf("%w: give --kubeconfig where this is no pod", err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("find credentials for the API server: %w", err)
	}
	rc.UserAgent = "firsthop/" + cfg.Version
	rc.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // a proxy is for what leaves the cluster
	return rc, nil
}

// dialBy makes a configuration use a dialer.
func dialBy(rc *rest.Config, dial func(ctx context.Context, network, address string) (net.Conn, error)) *rest.Config {
	rc = rest.CopyConfig(rc)
	rc.Dial = dial
	return rc
}
