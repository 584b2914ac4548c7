package probe

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoRandomness says that the kernel has no random numbers yet, which TLS
// needs. getrandom(2) waits for them without a limit: below Linux 5.4 a machine
// without a source of randomness may wait until somebody types (commit
// 50ee7529ec45).
var ErrNoRandomness = errors.New("the kernel has no random numbers yet, and TLS waits for them: " +
	"give the machine a source of randomness (virtio-rng, random.trust_cpu=on, haveged)")

// randomness remembers that the kernel has random numbers: it never loses them.
var randomness atomic.Bool

// randomnessPoll is how often the kernel is asked whether it has any.
const randomnessPoll = 20 * time.Millisecond

// AwaitRandomness returns when the kernel has random numbers, or with
// ErrNoRandomness when ctx ends. Call it before a TLS handshake, which would not
// end with its context.
func AwaitRandomness(ctx context.Context) error {
	var b [1]byte
	for !randomness.Load() {
		if _, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK); !errors.Is(err, unix.EAGAIN) {
			randomness.Store(true) // or a kernel that does not wait
			return nil
		}
		select {
		case <-ctx.Done():
			return ErrNoRandomness
		case <-time.After(randomnessPoll):
		}
	}
	return nil
}
