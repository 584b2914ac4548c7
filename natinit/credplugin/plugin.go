// Package credplugin runs the credential plugins of kubeconfigs (users[].user.exec): programs such as `aws eks get-token`.
//
// client-go would run them with our standard error output, for as long as they like, and leave them running when nobody
// waits any more. Here a plugin
//
//   - must be a program that only root may write, as the kubeconfig that names it (package hostfs);
//   - has a limited time, and is named with its kubeconfig in every error;
//   - runs in a process-id namespace of its own, so that whatever it has started ends with it; and it ends when nobody
//     waits for it, when its time is up, and when this process does;
//   - gets none of our files: no standard input, and pipes for what it says.
//
// The protocol is that of client.authentication.k8s.io, v1 and v1beta1.
package credplugin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/pkg/apis/clientauthentication"
	"k8s.io/client-go/pkg/apis/clientauthentication/install"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

const (
	// DefaultTime is what a plugin gets: `aws eks get-token` takes 1 to 5 s (aws/aws-cli#5570).
	DefaultTime = 10 * time.Second
	// failureTime is how long a failure is told again instead of another try.
	failureTime = 5 * time.Second
	// maxPlugins bounds the plugins that are remembered.
	maxPlugins = 64
)

// path is where a command without a slash is looked for: the directories of distributions, and /opt/bin of Flatcar. Ours
// may name directories of users.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin:/opt/bin"

// codec knows the protocol. It is made when it is needed: few nodes have a plugin.
var codec = sync.OnceValue(func() protocol {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	return protocol{scheme, serializer.NewCodecFactory(scheme)}
})

type protocol struct {
	scheme *runtime.Scheme
	codecs serializer.CodecFactory
}

// Plugin is one credential plugin, with what it gave.
type Plugin struct {
	kubeconfig string
	exec       *clientcmdapi.ExecConfig
	version    schema.GroupVersion
	cluster    *clientauthentication.Cluster
	limit      time.Duration

	mu       sync.Mutex
	current  *Credentials
	failure  error
	failedAt time.Time
	running  *run // nil while none runs
}

// Credentials are what a plugin gave.
type Credentials struct {
	Token       string
	Certificate *tls.Certificate
	expires     time.Time // zero: never
}

// run is one run, for which several may wait.
type run struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{}
	err     error
}

var (
	known   = map[string]*Plugin{}
	knownMu sync.Mutex
)

// Take takes the plugin of a configuration away from client-go; nil if there is none. kubeconfig is the path of the file
// that names it, and trusted says why it may not be believed: nil if only root may write it.
func Take(c *rest.Config, kubeconfig string, trusted error) (*Plugin, error) {
	if c.ExecProvider == nil {
		return nil, nil
	}
	cluster, err := rest.ConfigToExecCluster(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	p, err := find(kubeconfig, trusted, c.ExecProvider, cluster)
	if err != nil {
		return nil, err
	}
	c.ExecProvider = nil
	c.Wrap(p.Wrap)
	return p, nil
}

// find gives the same plugin for the same text: what it gave once is used again.
func find(kubeconfig string, trusted error, exec *clientcmdapi.ExecConfig, cluster *clientauthentication.Cluster) (*Plugin, error) {
	p := &Plugin{kubeconfig: kubeconfig, exec: exec, limit: DefaultTime}
	if trusted != nil {
		return nil, fmt.Errorf("%s is not run: %w", p, trusted)
	}
	if exec.InteractiveMode == clientcmdapi.AlwaysExecInteractiveMode {
		return nil, fmt.Errorf("%s is not run: it needs a terminal (interactiveMode: Always)", p)
	}
	version, err := schema.ParseGroupVersion(exec.APIVersion)
	if err != nil || !codec().scheme.IsVersionRegistered(version) {
		return nil, fmt.Errorf("%s is not run: unknown apiVersion %q", p, exec.APIVersion)
	}
	p.version = version
	if exec.ProvideClusterInfo {
		p.cluster = cluster
	}
	key, err := json.Marshal([]any{kubeconfig, exec, p.cluster})
	if err != nil {
		return nil, fmt.Errorf("%s is not run: %w", p, err)
	}
	knownMu.Lock()
	defer knownMu.Unlock()
	if old := known[string(key)]; old != nil {
		return old, nil
	}
	if len(known) >= maxPlugins {
		clear(known)
	}
	known[string(key)] = p
	return p, nil
}

// String names the plugin, for errors.
func (p *Plugin) String() string {
	return fmt.Sprintf("the credential plugin %s of %s", p.exec.Command, p.kubeconfig)
}

// TimeoutError says that a plugin was stopped for taking too long.
type TimeoutError struct {
	plugin string
	After  time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("%s gave no credentials within %s and was stopped", e.plugin, e.After.Round(100*time.Millisecond))
}

// Ready tells whether Get would answer at once.
func (p *Plugin) Ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current.valid()
}

func (c *Credentials) valid() bool {
	return c != nil && (c.expires.IsZero() || time.Now().Before(c.expires))
}

// Get gives credentials that are not expired, within ctx. It runs the plugin where there are none, once for all that
// wait, and stops it when the last one does not wait any more.
func (p *Plugin) Get(ctx context.Context) (*Credentials, error) {
	p.mu.Lock()
	if c := p.current; c.valid() {
		p.mu.Unlock()
		return c, nil
	}
	p.current = nil
	if p.failure != nil && time.Since(p.failedAt) < failureTime {
		defer p.mu.Unlock()
		return nil, p.failure
	}
	r := p.running
	if r == nil {
		r = p.start(ctx)
	}
	r.waiters++
	p.mu.Unlock()
	began := time.Now()
	select {
	case <-r.done:
	case <-ctx.Done():
	}
	p.mu.Lock()
	if r.waiters--; r.waiters == 0 {
		r.cancel()
		if p.running == r {
			p.running = nil
		}
		p.mu.Unlock()
		<-r.done // nothing is left running
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	select {
	case <-r.done:
		if r.err == nil && p.current != nil {
			return p.current, nil
		}
		if r.err != nil && ctx.Err() == nil {
			return nil, r.err
		}
	default:
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, &TimeoutError{p.String(), time.Since(began)}
	}
	if ctx.Err() == nil {
		return nil, fmt.Errorf("%s was stopped", p)
	}
	return nil, ctx.Err()
}

// start runs the plugin. It ends with its waiters, not with the first one's context.
func (p *Plugin) start(ctx context.Context) *run {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.limitFor(ctx))
	r := &run{cancel: cancel, done: make(chan struct{})}
	p.running = r
	go func() {
		defer cancel()
		c, err := p.once(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		r.err = err
		switch {
		case err == nil:
			p.current, p.failure = c, nil
		case ctx.Err() != context.Canceled: // not for want of waiters
			p.failure, p.failedAt = err, time.Now()
		}
		if p.running == r {
			p.running = nil
		}
		close(r.done)
	}()
	return r
}

// limitFor is the plugin's time: who waits longer gives it more.
func (p *Plugin) limitFor(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(p.limit, time.Until(deadline))
	}
	return p.limit
}

// Forget makes the next Get run the plugin, as the API refused what it gave.
func (p *Plugin) Forget(c *Credentials) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == c {
		p.current = nil
	}
}

// once runs the plugin and reads what it says.
func (p *Plugin) once(ctx context.Context) (*Credentials, error) {
	program, err := p.find(hostfs.FS{})
	if err != nil {
		return nil, fmt.Errorf("%s is not run: %w", p, err)
	}
	info, err := runtime.Encode(codec().codecs.LegacyCodec(p.version), &clientauthentication.ExecCredential{
		Spec: clientauthentication.ExecCredentialSpec{Cluster: p.cluster},
	})
	if err != nil {
		return nil, fmt.Errorf("%s is not run: %w", p, err)
	}
	began := time.Now()
	out, err := p.execute(ctx, program, string(info))
	if ctx.Err() != nil {
		return nil, &TimeoutError{p.String(), time.Since(began)}
	}
	if err != nil {
		return nil, fmt.Errorf("%s failed: %w", p, err)
	}
	c, err := p.decode(out)
	if err != nil {
		return nil, fmt.Errorf("%s gave no credentials: %w", p, err)
	}
	return c, nil
}

// find gives the program, which only root may write. A relative name counts from the kubeconfig's directory.
func (p *Plugin) find(files hostfs.FS) (string, error) {
	command := p.exec.Command
	if strings.Contains(command, "/") {
		if !filepath.IsAbs(command) {
			command = filepath.Join(filepath.Dir(p.kubeconfig), command)
		}
		return command, files.CheckTrusted(command)
	}
	var errs []error
	for _, dir := range filepath.SplitList(path) {
		at := filepath.Join(dir, command)
		if !files.Exists(at) {
			continue
		}
		err := files.CheckTrusted(at)
		if err == nil {
			return at, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = append(errs, fmt.Errorf("there is no %s in %s", command, path))
	}
	return "", errors.Join(errs...)
}

func (p *Plugin) decode(out []byte) (*Credentials, error) {
	cred := &clientauthentication.ExecCredential{}
	_, kind, err := codec().codecs.UniversalDecoder(p.version).Decode(out, nil, cred)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it printed no ExecCredential: %s", firstLine(err.Error()))
	case kind.GroupVersion() != p.version:
		return nil, fmt.Errorf("it printed apiVersion %s, the kubeconfig says %s", kind.GroupVersion(), p.version)
	case cred.Status == nil:
		return nil, errors.New("what it printed has no status")
	}
	st := cred.Status
	c := &Credentials{Token: st.Token}
	if st.ExpirationTimestamp != nil {
		c.expires = st.ExpirationTimestamp.Time
	}
	switch {
	case (st.ClientCertificateData == "") != (st.ClientKeyData == ""):
		return nil, errors.New("it printed one of certificate and key, not both")
	case st.ClientKeyData != "":
		cert, err := tls.X509KeyPair([]byte(st.ClientCertificateData), []byte(st.ClientKeyData))
		if err != nil {
			return nil, fmt.Errorf("its certificate: %w", err)
		}
		if cert.Leaf == nil {
			if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
				return nil, fmt.Errorf("its certificate: %w", err)
			}
		}
		c.Certificate = &cert
	case st.Token == "":
		return nil, errors.New("it printed neither a token nor a certificate")
	}
	return c, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
