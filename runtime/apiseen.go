package runtime

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/runtime/apihealth"
)

// apiServersSeen is how the API servers look from this node, for its Node object: "2 of 3 ready, not 192.0.2.13:6443". "": not
// all have been asked yet.
func apiServersSeen(st apihealth.Status) string {
	var not []string
	for _, e := range st.Endpoints {
		switch e.State {
		case apiserver.Live:
		case apiserver.Unknown:
			return ""
		default:
			not = append(not, e.Endpoint.String())
		}
	}
	all := len(st.Endpoints)
	if all == 0 {
		return ""
	}
	text := fmt.Sprintf("%d of %d ready", all-len(not), all)
	if len(not) > 0 {
		text += ", not " + strings.Join(not, ", ")
	}
	return text
}

// A Node says that an API server came or went only when that has lasted, and nodes do so at different times: an API
// server's end must not bring writes of every node at once to those that are left.
const (
	steadyTime   = 20 * time.Second
	steadySpread = 40 * time.Second
)

// steady is a text that changes when another has been there for a while.
type steady struct {
	lasting    time.Duration
	text, next string
	since      time.Time // of next
}

func newSteady() *steady { return &steady{lasting: steadyTime + rand.N(steadySpread)} }

// take takes the text as it is now, and returns the one that holds. The first one does at once.
func (s *steady) take(now time.Time, text string) string {
	switch {
	case text == "":
	case s.text == "":
		s.text = text
	case text == s.text:
		s.next = ""
	case text != s.next:
		s.next, s.since = text, now
	case now.Sub(s.since) >= s.lasting:
		s.text, s.next = text, ""
	}
	return s.text
}
