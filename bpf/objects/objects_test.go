package objects

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// fakeLink only knows how often it was closed.
type fakeLink struct {
	link.Link
	closed int
}

func (l *fakeLink) Close() error { l.closed++; return nil }

// script is a kernel with links of the ids 1 to len(links). ends are the errors with which it ends one listing after the
// other, each at an id; after them a listing ends well.
type script struct {
	links []*fakeLink
	ends  []end
	asked int
}

type end struct {
	at  link.ID // the listing ends instead of giving this id
	err error
}

type scripted struct {
	*script
	id  link.ID
	end end
}

func (s *script) from(after link.ID) (Iterator, func() link.ID) {
	it := &scripted{script: s, id: after}
	if s.asked < len(s.ends) {
		it.end = s.ends[s.asked]
	}
	s.asked++
	return it, func() link.ID { return it.id }
}

func (it *scripted) Next() bool {
	if int(it.id) == len(it.links) || it.end.at == it.id+1 {
		return false
	}
	it.id++
	return true
}
func (it *scripted) Take() link.Link { return it.links[it.id-1] }
func (it *scripted) Err() error      { return it.end.err }
func (it *scripted) Close()          {}

func newScript(n int, ends ...end) *script {
	s := &script{ends: ends}
	for range n {
		s.links = append(s.links, &fakeLink{})
	}
	return s
}

func TestLinksEach(t *testing.T) {
	get := func(err error) error { return fmt.Errorf("get next link ID: %w", err) }
	for name, tc := range map[string]struct {
		*script
		want []link.ID
		err  error
	}{
		"no link":                                   {newScript(0), nil, nil},
		"three":                                     {newScript(3), []link.ID{1, 2, 3}, nil},
		"a kernel below 5.8 ends in EINVAL":         {newScript(0, end{1, get(unix.EINVAL)}), nil, ErrNotSupported},
		"or says what other commands say":           {newScript(0, end{1, get(ebpf.ErrNotSupported)}), nil, ErrNotSupported},
		"EINVAL after an id is an error":            {newScript(3, end{3, get(unix.EINVAL)}), []link.ID{1, 2}, unix.EINVAL},
		"a lack of rights is an error":              {newScript(1, end{1, get(unix.EPERM)}), nil, unix.EPERM},
		"a link in the making is asked for again":   {newScript(3, end{2, get(unix.EAGAIN)}, end{2, get(unix.EAGAIN)}), []link.ID{1, 2, 3}, nil},
		"also if it is gone when it is asked again": {newScript(1, end{2, get(unix.EAGAIN)}), []link.ID{1}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ids, err := Links{from: tc.from}.IDs()
			if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
			if errors.Is(err, ErrNotSupported) != (tc.err == ErrNotSupported) {
				t.Errorf("%v: is it a kernel that does not list links?", err)
			}
			if !slices.Equal(ids, tc.want) {
				t.Errorf("listed %v, want %v", ids, tc.want)
			}
			for _, id := range tc.want {
				if n := tc.links[id-1].closed; n != 1 {
					t.Errorf("link %d was closed %d times", id, n)
				}
			}
		})
	}
}

func TestLinksEachGivesUp(t *testing.T) {
	s := newScript(1)
	for range 2 * maxRetries {
		s.ends = append(s.ends, end{1, unix.EAGAIN})
	}
	if _, err := (Links{from: s.from}).IDs(); !errors.Is(err, unix.EAGAIN) || s.asked != maxRetries+1 {
		t.Errorf("%v after %d listings", err, s.asked)
	}
}

func TestLinksEachEndsWithTheVisitor(t *testing.T) {
	s := newScript(3)
	err := Links{from: s.from}.Each(func(id link.ID, _ link.Link) (bool, error) { return id == 2, nil })
	if err != nil || s.links[0].closed != 1 || s.links[1].closed != 0 || s.links[2].closed != 0 {
		t.Errorf("%v: the second was taken, closed are %v %v %v", err, s.links[0], s.links[1], s.links[2])
	}
	s, failed := newScript(3), errors.New("failed")
	err = Links{from: s.from}.Each(func(id link.ID, _ link.Link) (bool, error) { return true, failed })
	if !errors.Is(err, failed) || s.links[0].closed != 1 || s.links[1].closed != 0 {
		t.Errorf("%v: the visitor failed at the first", err)
	}
}

func TestUnlistedIsAKernelBelow58(t *testing.T) {
	if ids, err := Unlisted().IDs(); !errors.Is(err, ErrNotSupported) || len(ids) > 0 {
		t.Errorf("%v, %v", ids, err)
	}
}

// The kernel of this machine lists its links, or says that it does not.
func TestTheKernelLists(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := (Links{}).IDs(); err != nil && !errors.Is(err, ErrNotSupported) {
		t.Error(err)
	}
}
