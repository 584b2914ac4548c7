package nodestatus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/natinit/apiserver/query"
)

// Label is the key of the label. Its value is a Mode.
const Label = query.NodeLabel

// ConditionType is the type of the condition: True where every Service is served as it should be.
const ConditionType corev1.NodeConditionType = query.NodeCondition

// Mode is how the node's Services are served.
type Mode string

// The modes.
const (
	// Active: connections are served by firsthop, and that was proven. Packets from outside of the cluster are not: only
	// kube-proxy serves them.
	Active Mode = "active"
	// Fallback: by kube-proxy. The node can't run firsthop, or the proof failed.
	Fallback Mode = "fallback"
)

// Report is what is to be said.
type Report struct {
	Mode    Mode
	Ready   corev1.ConditionStatus // of the condition
	Reason  string                 // one word in CamelCase, as the API wants it
	Message string                 // for people
}

// Config is what a Reporter needs.
type Config struct {
	NodeName string
	// Client is one for core/v1.
	Client rest.Interface
	Log    *slog.Logger

	// Heartbeat is how often the same is said again. 0: 5 minutes, as the kubelet does.
	Heartbeat time.Duration
	// Pause is the shortest time between two writes. 0: 10 s.
	Pause time.Duration
	// FirstRetry and LongestRetry bound the time after a write that failed. 0: 1 s and 5 minutes.
	FirstRetry, LongestRetry time.Duration
	// Timeout is for one request. 0: 15 s.
	Timeout time.Duration
}

// Status is how a Reporter is doing.
type Status struct {
	Report  Report    // that is to be said
	Written time.Time // when it last was, zero: not yet
	Err     string    // why not
	Writes  uint64
}

// Reporter says it. Set and Saw never block; Run does the rest.
type Reporter struct {
	cfg  Config
	wake chan struct{}

	mu     sync.Mutex
	want   *Report
	said   *said // what the Node says, as far as is known
	doubt  bool  // it may say something else
	status Status
}

// said is what a Node object says.
type said struct {
	report    Report
	changed   time.Time // the condition's status, zero: there is no condition
	heartbeat time.Time
}

// New makes a Reporter that says nothing before the first Set.
func New(cfg Config) *Reporter {
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 5*time.Minute)
	cfg.Pause = cmp.Or(cfg.Pause, 10*time.Second)
	cfg.FirstRetry = cmp.Or(cfg.FirstRetry, time.Second)
	cfg.LongestRetry = cmp.Or(cfg.LongestRetry, 5*time.Minute)
	cfg.Timeout = cmp.Or(cfg.Timeout, 15*time.Second)
	return &Reporter{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Set takes what is to be said from now on.
func (r *Reporter) Set(report Report) {
	report = report.normal()
	r.mu.Lock()
	same := r.want != nil && *r.want == report
	r.want, r.status.Report = &report, report
	r.mu.Unlock()
	if !same {
		r.notify()
	}
}

// Saw takes the Node object as it is now: what others made of the label and the condition is made good. nil, and objects
// without labels and conditions, as strippers make them, must not be given.
func (r *Reporter) Saw(node *corev1.Node) {
	r.mu.Lock()
	now := read(node)
	differs := r.want != nil && now.report != *r.want
	if differs {
		r.doubt = true // it may be from before our last write, or from after it: the API is asked
	} else if r.said == nil || !now.heartbeat.Before(r.said.heartbeat) {
		r.said = now
	}
	r.mu.Unlock()
	if differs {
		r.notify()
	}
}

// Status may be asked for at any time.
func (r *Reporter) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

func (r *Reporter) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run writes until the context ends. The Node keeps what was said last.
func (r *Reporter) Run(ctx context.Context) {
	retry := r.cfg.FirstRetry
	var next <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-next:
		}
		wait := r.cfg.Heartbeat
		switch wrote, err := r.write(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.failed(err)
			if !r.sleep(ctx, retry) {
				return
			}
			retry = min(2*retry, r.cfg.LongestRetry)
			if apierrors.IsInvalid(err) {
				retry = r.cfg.LongestRetry // it won't get better by itself
			}
			r.notify()
			continue
		case wrote:
			retry = r.cfg.FirstRetry
			if !r.sleep(ctx, r.cfg.Pause) {
				return
			}
			wait = max(0, wait-r.cfg.Pause)
		}
		next = time.After(wait)
	}
}

func (r *Reporter) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// write says what is to be said, if the Node doesn't say so.
func (r *Reporter) write(ctx context.Context) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	r.mu.Lock()
	want, now := r.want, r.said
	if r.doubt {
		now = nil
	}
	if want != nil {
		r.doubt = false
	}
	r.mu.Unlock()
	if want == nil {
		return false, nil
	}
	if now == nil {
		if now, err = r.get(ctx); err != nil {
			return false, err
		}
	}
	at := time.Now()
	if now.report == *want && at.Sub(now.heartbeat) < r.cfg.Heartbeat-r.cfg.Heartbeat/10 {
		r.wrote(now, false)
		return false, nil
	}
	body, err := patch(*want, now, at)
	if err != nil {
		return false, err
	}
	if now, err = r.patch(ctx, body); err != nil {
		r.mu.Lock()
		r.said = nil // it may have been carried out
		r.mu.Unlock()
		return false, err
	}
	r.wrote(now, true)
	return true, nil
}

func (r *Reporter) wrote(now *said, anew bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status.Err != "" {
		r.cfg.Log.Info("the Node object says again how Services are served", "node", r.cfg.NodeName)
	}
	r.said, r.status.Err = now, ""
	r.status.Written = now.heartbeat
	if anew {
		r.status.Writes++
	}
}

// failed notes and logs why nothing can be written, once for each reason.
func (r *Reporter) failed(err error) {
	text := fmt.Sprintf("write the label and condition of node %s: %v", r.cfg.NodeName, err)
	switch {
	case apierrors.IsForbidden(err):
		text += ": the runtime needs get on nodes and patch on nodes/status; deploy/runtime/rbac.yaml has them. Services are served without"
	case apierrors.IsNotFound(err):
		text += ": is --node-name the name of the Node object?"
	}
	r.mu.Lock()
	first := r.status.Err != text
	if errors.Is(err, context.DeadlineExceeded) {
		first = r.status.Err == ""
	}
	r.status.Err = text
	r.mu.Unlock()
	if first {
		r.cfg.Log.Warn("the Node object does not say how Services are served", "err", text)
	}
}
