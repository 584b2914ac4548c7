package sync

import (
	"sync"
	"sync/atomic"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// lockedFake lets a Loop, what its writer retires, and a test meet.
type lockedFake struct {
	*nat.Fake
	mu     sync.Mutex
	before atomic.Pointer[func()] // is called before each write of backends
	grace  atomic.Pointer[func()] // is called in each grace period
}

func locked[T any](f *lockedFake, do func() T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return do()
}

func (f *lockedFake) writes() int { return locked(f, func() int { return f.Writes }) }

func (f *lockedFake) Read() (*nat.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.Read()
}
func (f *lockedFake) Generation() (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.Generation()
}
func (f *lockedFake) PutGeneration(g uint64) error {
	return locked(f, func() error { return f.Fake.PutGeneration(g) })
}
func (f *lockedFake) PutBackends(k []bpf.BackendKey, v []bpf.Backend) error {
	if before := f.before.Load(); before != nil {
		(*before)()
	}
	return locked(f, func() error { return f.Fake.PutBackends(k, v) })
}
func (f *lockedFake) DeleteBackends(k []bpf.BackendKey) error {
	return locked(f, func() error { return f.Fake.DeleteBackends(k) })
}
func (f *lockedFake) PutFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	return locked(f, func() error { return f.Fake.PutFrontends(k, v) })
}
func (f *lockedFake) ChangeFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	return locked(f, func() error { return f.Fake.ChangeFrontends(k, v) })
}
func (f *lockedFake) DeleteFrontends(k []bpf.FrontendKey) error {
	return locked(f, func() error { return f.Fake.DeleteFrontends(k) })
}
func (f *lockedFake) PutRanges(k []bpf.SourceRangeKey) error {
	return locked(f, func() error { return f.Fake.PutSourceRanges(k) })
}
func (f *lockedFake) DeleteRanges(k []bpf.SourceRangeKey) error {
	return locked(f, func() error { return f.Fake.DeleteSourceRanges(k) })
}
func (f *lockedFake) PutWords(at []uint32, w []bpf.ServiceState) error {
	return locked(f, func() error { return f.Fake.PutServiceStates(at, w) })
}
func (f *lockedFake) Synchronize() error {
	if grace := f.grace.Load(); grace != nil {
		(*grace)()
	}
	return locked(f, f.Fake.Synchronize)
}
