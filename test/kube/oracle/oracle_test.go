package oracle

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/firsthop/firsthop/runtime/services"
)

var (
	seed  = flag.Uint64("seed", defaultSeed(), "the seed of all cases; 0 takes a new one")
	cases = flag.Int("cases", defaultCases, "how many cases to try")
	only  = flag.Int("case", -1, "the number of the one case to try")
)

// defaultSeed is the same for each commit, so that a test that turns red says something of the commit. The long tests
// take a new one each time: what they find was there before.
func defaultSeed() uint64 {
	if os.Getenv("FIRSTHOP_TEST_LONG") != "" {
		return 0
	}
	return 1
}

// steps is how many worlds a case has: the first one, and others that follow from it by small changes.
const steps = 3

func TestMain(m *testing.M) {
	// kube-proxy's packages log what they think odd, which is most of it.
	klog.SetLogger(logr.Discard())
	flag.Parse()
	debug.SetGCPercent(400) // little lives long here
	os.Exit(m.Run())
}

// TestOracle tries random cases. A case that fails is printed, as small as it can be made.
func TestOracle(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	first, end := 0, *cases
	if *only >= 0 {
		first, end = *only, *only+1
	}
	t.Logf("%d cases from seed %d; repeat one with: go test ./oracle -args -seed %[2]d -case NUMBER", end-first, *seed)
	start := time.Now()
	var next, compared, failed atomic.Int64
	next.Store(int64(first))
	excused := make([]atomic.Int64, len(Differences))
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				n := int(next.Add(1) - 1)
				if n >= end || failed.Load() > 2 { // one more would tell nothing new
					return
				}
				worlds, err := try(*seed, n, excused)
				compared.Add(int64(worlds))
				if err != nil {
					failed.Add(1)
					t.Errorf("seed %d case %d: %v", *seed, n, err)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("compared %d worlds in %.1fs", compared.Load(), time.Since(start).Seconds())
	for i, d := range Differences {
		t.Logf("seen in %d worlds: %s", excused[i].Load(), d.Name)
		if excused[i].Load() == 0 && end-first >= 1000 {
			t.Errorf("%q is no difference any more: take it out of Differences", d.Name)
		}
	}
}

// enough is how often a Difference must have been seen; looking for more takes time.
const enough = 100

// try compares all worlds of a case and returns how many there were. It counts the Differences without which there would
// have been a complaint.
func try(seed uint64, n int, excused []atomic.Int64) (worlds int, err error) {
	g := &Generator{Rand: rand.New(rand.NewPCG(seed, uint64(n)))}
	if n%2 == 1 {
		g.Odd = 0.03
	}
	w, former := g.World(), &World{}
	theirs, table := newKubeProxy(w.Node), newOurTable(w.Node)
	for range steps {
		theirs.node = w.Node
		table.setNode(w.Node)
		for _, c := range changes(former, w) {
			theirs.follow(c)
			table.follow(c)
		}
		ours := Ours(w)
		if got := table.result(); !Equal(got, ours) {
			return worlds, fmt.Errorf("our Table, step by step, is not what it is at once (-at once +step by step):\n%s\nformer world:\n%s\nworld:\n%s",
				Diff(ours, got), former.YAML(), w.YAML())
		}
		worlds++
		got, panicked := theirs.result()
		if panicked != nil {
			theirs = newKubeProxy(w.Node)
			for _, c := range changes(&World{}, w) {
				theirs.follow(c)
			}
		}
		if panicked != nil || !Equal(got, ours) {
			e := Explain(w, ours)
			if !e.OK {
				return worlds, complaint(w)
			}
			for _, i := range e.Applied {
				if excused[i].Load() < enough && Needs(w, ours, i) {
					excused[i].Add(1)
				}
			}
		}
		former, w = w, g.Change(w)
	}
	return worlds, nil
}

// TestServicesShareNoFrontend: what a Service has must follow from it alone, or Ours cannot say.
func TestServicesShareNoFrontend(t *testing.T) {
	g := &Generator{Rand: rand.New(rand.NewPCG(1, 1)), Odd: 0.3}
	for range 3000 {
		w := g.World()
		table := newOurTable(w.Node)
		for _, c := range changes(&World{}, w) {
			table.follow(c)
		}
		for _, svc := range w.Services {
			for _, p := range table.table.Problems(nameOf(svc)) {
				if p.Reason == services.FrontendTaken {
					t.Fatalf("%v\nworld:\n%s", p, w.YAML())
				}
			}
		}
	}
}

// complaint describes a world in which we are not excused, after it has made it small.
func complaint(w *World) error {
	small := Minimise(w, func(w *World) bool { return !Explain(w, Ours(w)).OK })
	ours := Ours(small)
	e := Explain(small, ours)
	if e.Panic != nil {
		return fmt.Errorf("%w\nworld:\n%s", e.Panic, small.YAML())
	}
	return fmt.Errorf("we do something else than kube-proxy (-kube-proxy +we):\n%s\nworld:\n%s", Diff(e.Theirs, ours), small.YAML())
}
