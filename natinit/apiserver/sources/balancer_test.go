package sources

import (
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

func TestBalancerSource(t *testing.T) {
	runSourceCases(t, map[string]sourceCase{
		"kubespray's nginx": {
			files{"/etc/nginx/nginx.conf": "worker_processes 2;\nstream {\n  upstream kube_apiserver {\n    least_conn;\n    server 10.0.0.11:6443;\n    server 10.0.0.12:6443 max_fails=3; # x\n    # server 10.0.0.13:6443;\n  }\n  server {\n    listen 127.0.0.1:6443;\n    proxy_pass kube_apiserver;\n  }\n}\nhttp { upstream web { server 10.9.9.9:80; } }\n"},
			apiserver.SourceBalancer, nil, []string{"10.0.0.11:6443", "10.0.0.12:6443"}, nil, nil, []string{"2 servers"}},
		"HAProxy": {
			files{"/etc/haproxy/haproxy.cfg": "global\n  maxconn 4000\nfrontend kube_api_frontend\n  bind 127.0.0.1:6443\n  default_backend kube_api_backend\n\nbackend kube_api_backend\n  mode tcp\n  option httpchk GET /healthz\n  server master1 10.0.0.11:6443 check check-ssl verify none\n  server master2 [fd00::12]:6443 check\nbackend web\n  server w 10.9.9.9:80\n"},
			apiserver.SourceBalancer, nil, []string{"10.0.0.11:6443", "[fd00::12]:6443"}, nil, nil, nil},
		"a balancer of other things": {
			files{"/etc/nginx/nginx.conf": "http { upstream web { server 10.9.9.9:80; } }\n", "/etc/haproxy/haproxy.cfg": "listen web\n server w 10.9.9.9:80\n"},
			apiserver.SourceBalancer, nil, nil, nil, nil, []string{"no nginx or HAProxy"}},
	})
}
