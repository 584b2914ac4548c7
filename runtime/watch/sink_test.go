package watch

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

func newSink(res Resource) (*sink, *[]Event) {
	var got []Event
	w := New(Config{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Stripper: &services.Stripper{},
		Handle: func(events []Event) { got = append(got, events...) },
	})
	return &sink{w: w, resource: res, known: map[types.NamespacedName]bool{}}, &got
}

func list(names ...string) []any {
	var out []any
	for _, n := range names {
		out = append(out, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: n}})
	}
	return out
}

func many(n int) []string {
	names := []string{"kubernetes"}
	for i := range n - 1 {
		names = append(names, fmt.Sprint("s", i))
	}
	return names
}

func TestSinkRejectsAListWithoutTheAPIService(t *testing.T) {
	s, got := newSink(Services)
	if err := s.Replace(list("kubernetes", "a"), "1"); err != nil {
		t.Fatal(err)
	}
	*got = nil
	for range 3 {
		if err := s.Replace(list("a"), "2"); !errors.Is(err, errBadList) || len(*got) > 0 {
			t.Errorf("%v, told %v", err, *got)
		}
	}
	if st := s.w.Status()[Services]; st.LastError == "" {
		t.Error("nothing is said of it")
	}
}

// An API server that lost its store makes a new default/kubernetes at once.
func TestSinkRejectsAListThatLacksMostOnce(t *testing.T) {
	s, got := newSink(Services)
	if err := s.Replace(list(many(50)...), "1"); err != nil {
		t.Fatal(err)
	}
	*got = nil
	if err := s.Replace(list(many(2)...), "2"); !errors.Is(err, errHalf) || len(*got) > 0 {
		t.Errorf("the first: %v, told %d events", err, len(*got))
	}
	if err := s.Replace(list(many(49)...), "3"); err != nil || len(*got) != 51 {
		t.Errorf("a whole one: %v, told %d events", err, len(*got))
	}
	*got = nil
	first, second := s.Replace(list(many(2)...), "4"), s.Replace(list(many(2)...), "5")
	if !errors.Is(first, errHalf) || second != nil {
		t.Errorf("one that is confirmed: %v, then %v", first, second)
	}
	gone := 0
	for _, ev := range *got {
		if ev.Object == nil && !ev.Synced {
			gone++
		}
	}
	if gone != 47 {
		t.Errorf("%d are gone, want 47", gone)
	}
}
