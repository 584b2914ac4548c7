package credplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/pkg/apis/clientauthentication"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/test/lab"
)

const v1 = "client.authentication.k8s.io/v1"

const token = `echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"one"}}'`

// script makes a plugin of a shell script. Its name is a word that finds its processes.
func script(t *testing.T, text string) *clientcmdapi.ExecConfig {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "plugin-"+filepath.Base(filepath.Dir(dir)))
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &clientcmdapi.ExecConfig{Command: path, APIVersion: v1, InteractiveMode: clientcmdapi.NeverExecInteractiveMode}
}

func newPlugin(t *testing.T, exec *clientcmdapi.ExecConfig) *Plugin {
	t.Helper()
	p, err := find(filepath.Join(t.TempDir(), "kubeconfig"), nil, exec, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGetKeepsCredentials(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	p := newPlugin(t, script(t, "echo >>"+runs+"; sleep 0.1; "+token))
	got := make(chan error, 8)
	for range cap(got) {
		go func() {
			c, err := p.Get(t.Context())
			if err == nil && c.Token != "one" {
				err = fmt.Errorf("token %q", c.Token)
			}
			got <- err
		}()
	}
	for range cap(got) {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	count := func() int {
		b, err := os.ReadFile(runs)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	if n := count(); n != 1 {
		t.Errorf("ran %d times for those that wait together", n)
	}
	c, err := p.Get(t.Context())
	if err != nil || count() != 1 {
		t.Errorf("%v, ran %d times", err, count())
	}
	p.Forget(c)
	if p.Ready() {
		t.Error("ready with what the API refused")
	}
	if _, err := p.Get(t.Context()); err != nil || count() != 2 {
		t.Errorf("after a refusal: %v, ran %d times", err, count())
	}
}

func TestGetRunsAgainWhenExpired(t *testing.T) {
	p := newPlugin(t, script(t, `echo "{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"$$\",\"expirationTimestamp\":\"2020-01-01T00:00:00Z\"}}"; exec >&-; : `))
	if _, err := p.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.Ready() {
		t.Error("ready with an expired token")
	}
}

// children are what a plugin may do to go on: in the background, in a session of its own, deaf to signals, with our output.
const children = `trap "" HUP INT TERM; (sleep 300 & setsid sh -c "sleep 300; : $0" & setsid setsid sh -c 'trap "" HUP TERM; while :; do sleep 1; done; : '"$0" &) ; `

func left(t *testing.T, name string) string {
	t.Helper()
	var found []string
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range dirs {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(name)) && !bytes.Contains(b, []byte("test.")) {
			found = append(found, file+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return strings.Join(found, "\n")
}

func TestGetLeavesNothingRunning(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a process-id namespace")
	}
	for name, tc := range map[string]struct {
		text string
		ends string // how the wait ends: "", deadline, cancel
	}{
		"it is too slow":              {children + "sleep 300", "deadline"},
		"nobody waits any more":       {children + "sleep 300", "cancel"},
		"it succeeds and leaves some": {children + token, ""},
		"it fails and leaves some":    {children + "exit 3", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := script(t, tc.text)
			p := newPlugin(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			switch tc.ends {
			case "deadline":
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
			case "cancel":
				time.AfterFunc(300*time.Millisecond, cancel)
			}
			_, err := p.Get(ctx)
			if (err == nil) != (name == "it succeeds and leaves some") {
				t.Errorf("got %v", err)
			}
			var late *TimeoutError
			if tc.ends == "deadline" && (!errors.As(err, &late) || !strings.Contains(err.Error(), "the credential plugin "+cfg.Command+" of "+p.kubeconfig+" gave no credentials within")) {
				t.Errorf("does not name the plugin and its kubeconfig: %v", err)
			}
			if l := left(t, cfg.Command); l != "" {
				t.Errorf("left running:\n%s", l)
			}
		})
	}
}

// A killed firsthop takes the plugin with it.
func TestPluginEndsWithUs(t *testing.T) {
	if os.Getenv("CREDPLUGIN_CHILD") != "" {
		p, err := find("/kubeconfig", nil, &clientcmdapi.ExecConfig{Command: os.Getenv("CREDPLUGIN_CHILD"), APIVersion: v1, InteractiveMode: clientcmdapi.NeverExecInteractiveMode}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = p.Get(context.Background())
		return
	}
	ready := filepath.Join(t.TempDir(), "ready")
	cfg := script(t, "echo >"+ready+"; sleep 300")
	cmd := exec.Command(os.Args[0], "-test.run=^TestPluginEndsWithUs$")
	cmd.Env = append(os.Environ(), "CREDPLUGIN_CHILD="+cfg.Command)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "the plugin to run", func() bool { _, err := os.Stat(ready); return err == nil })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	lab.Await(t, "the plugin to end", func() bool { return left(t, cfg.Command) == "" })
}

func TestPluginGetsNoneOfOurFiles(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	p := newPlugin(t, script(t, "readlink /proc/self/fd/0 >"+out+"; readlink /proc/self/fd/3 3>&1 >>"+out+"; readlink /proc/self/fd/2 >>"+out+"; echo noise >&2; pwd >>"+out+"; echo $PATH >>"+out+"; "+token))
	t.Setenv("LD_PRELOAD", "")
	if _, err := p.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if lines[0] != "/dev/null" || !strings.HasPrefix(lines[1], "pipe:") || !strings.HasPrefix(lines[2], "pipe:") || lines[3] != "/" || lines[4] != path {
		t.Errorf("got %q", lines)
	}
	ours, err := os.Readlink("/proc/self/fd/2")
	if err != nil || lines[1] == ours || lines[2] == ours {
		t.Errorf("has our output: %q, ours is %s, %v", lines, ours, err)
	}
}

func TestEnvironment(t *testing.T) {
	p := newPlugin(t, &clientcmdapi.ExecConfig{Command: "x", APIVersion: v1, Env: []clientcmdapi.ExecEnvVar{{Name: "AWS_PROFILE", Value: "node"}, {Name: "PATH", Value: "/opt/aws"}}, InteractiveMode: "Never"})
	env := p.environment([]string{"PATH=/home/u/bin", "LD_PRELOAD=/tmp/x.so", "BASH_ENV=/tmp/x", "PYTHONPATH=/tmp", "NOTIFY_SOCKET=/run/n", "FIRSTHOP_SCOPE=all", "HTTPS_PROXY=http://p:1"}, "{}")
	want := []string{"HTTPS_PROXY=http://p:1", "PATH=" + path, "HOME=/root", "AWS_PROFILE=node", "PATH=/opt/aws", "KUBERNETES_EXEC_INFO={}"}
	if strings.Join(env, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q\nwant %q", env, want)
	}
}

func TestGetNamesWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"it fails":            {"echo no such profile >&2; exit 255", "failed: exit status 255: no such profile"},
		"nonsense":            {"echo hello", "printed no ExecCredential"},
		"another version":     {strings.ReplaceAll(token, "io/v1", "io/v1beta1"), "the kubeconfig says client.authentication.k8s.io/v1"},
		"no status":           {`echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1"}'`, "has no status"},
		"an empty status":     {`echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{}}'`, "neither a token nor a certificate"},
		"half a pair":         {`echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"clientKeyData":"x"}}'`, "not both"},
		"it prints endlessly": {"yes", "stopped"},
		"it is no executable": {"", "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := script(t, tc.text)
			if tc.text == "" {
				if err := os.Chmod(cfg.Command, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			p := newPlugin(t, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, err := p.Get(ctx)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "the credential plugin "+cfg.Command+" of "+p.kubeconfig) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestPluginMustBelongToRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of others")
	}
	for name, spoil := range map[string]func(program string) error{
		"a user's program":        func(p string) error { return os.Chown(p, 65534, 65534) },
		"a program all may write": func(p string) error { return os.Chmod(p, 0o777) },
		"a user's directory":      func(p string) error { return os.Chown(filepath.Dir(p), 65534, 0) },
		"a group's directory":     func(p string) error { return os.Chmod(filepath.Dir(p), 0o775) },
		"a link to a user's script": func(p string) error {
			return errors.Join(os.Rename(p, p+".real"), os.Chown(p+".real", 65534, 0), os.Symlink(p+".real", p))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ran := filepath.Join(t.TempDir(), "ran")
			cfg := script(t, "echo >"+ran+"; "+token)
			if err := spoil(cfg.Command); err != nil {
				t.Fatal(err)
			}
			p := newPlugin(t, cfg)
			if _, err := p.Get(t.Context()); !errors.Is(err, hostfs.ErrUntrusted) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(ran); err == nil {
				t.Error("ran it")
			}
		})
	}
	if _, err := find("/k", hostfs.ErrUntrusted, script(t, token), nil); !errors.Is(err, hostfs.ErrUntrusted) {
		t.Errorf("a kubeconfig of a user's: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]*clientcmdapi.ExecConfig{
		"a version of old": {Command: "x", APIVersion: "client.authentication.k8s.io/v1alpha1", InteractiveMode: "Never"},
		"a terminal":       {Command: "x", APIVersion: v1, InteractiveMode: "Always"},
	} {
		if _, err := find("/k", nil, cfg, nil); err == nil {
			t.Error(name)
		}
	}
	one, err := find("/k", nil, &clientcmdapi.ExecConfig{Command: "same", APIVersion: v1, InteractiveMode: "Never"}, nil)
	two, err2 := find("/k", nil, &clientcmdapi.ExecConfig{Command: "same", APIVersion: v1, InteractiveMode: "Never"}, nil)
	if err != nil || err2 != nil || one != two {
		t.Errorf("not the same plugin: %p, %p, %v, %v", one, two, err, err2)
	}
}

func TestPluginIsToldOfTheCluster(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	cfg := script(t, `printf %s "$KUBERNETES_EXEC_INFO" >`+out+"; "+token)
	cfg.ProvideClusterInfo = true
	p, err := find("/k", nil, cfg, &clientauthentication.Cluster{Server: "https://10.0.0.1:6443"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		APIVersion, Kind string
		Spec             struct {
			Interactive bool
			Cluster     struct{ Server string }
		}
	}
	if err := json.Unmarshal(b, &info); err != nil || info.APIVersion != v1 || info.Kind != "ExecCredential" || info.Spec.Interactive || info.Spec.Cluster.Server != "https://10.0.0.1:6443" {
		t.Errorf("%s, %v", b, err)
	}
}

func TestWrapSendsTheToken(t *testing.T) {
	refuse := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse {
			w.WriteHeader(http.StatusUnauthorized)
		}
		fmt.Fprint(w, r.Header.Get("Authorization"))
	}))
	defer srv.Close()
	p := newPlugin(t, script(t, strings.ReplaceAll(token, "one", "'$$'")))
	client := http.Client{Transport: p.Wrap(http.DefaultTransport)}
	for i, want := range []int{401, 200, 200} {
		resp, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("request %d: %d", i, resp.StatusCode)
		}
		if p.Ready() == (i == 0) {
			t.Errorf("request %d: ready %v", i, p.Ready())
		}
		refuse = false
	}
}
