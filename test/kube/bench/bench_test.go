package bench_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/kube/bench"
	"github.com/firsthop/firsthop/test/lab"
)

var (
	sizes   = flag.String("sizes", "10,200", "numbers of Services, ascending")
	pairs   = flag.Int("pairs", 30, "how many pairs of bursts of connects")
	burst   = flag.Duration("burst", 250*time.Millisecond, "how long one is")
	starts  = flag.Int("starts", 5, "how often each proxy is started")
	changes = flag.Int("changes", 100, "how many changes of endpoints, one after the other, with firsthop")
	slow    = flag.Int("slow-changes", 30, "the same with kube-proxy, whose changes take seconds")
	many    = flag.Int("many", 1000, "how many changes in a row")
	pace    = flag.Int("pace", 50, "of those, how many a second")
	at      = flag.Int("change-size", 0, "number of Services at which changes are measured (default: the largest that is not above 10,000)")
	program = flag.String("firsthop", "../../../bin/firsthop", "`FILE` to measure, as make builds it")
	results = flag.String("results", "", "`FILE` to keep all figures in, as JSON")
	docs    = flag.String("docs", "", "`DIR` with benchmarks.md, to write the figures into")
	from    = flag.String("from", "", "`FILES` with the figures of former runs, comma-separated, to write the document of; nothing is measured")
	only    = flag.String("only", "", "of firsthop, iptables-legacy, iptables-nft and nftables, comma-separated, which to measure (default: all)")
	command = flag.String("command", "go test", "how this run was asked for")
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// BenchmarkBesideKubeProxy is the whole comparison. It is no benchmark that is repeated: run it with -benchtime=1x.
func BenchmarkBesideKubeProxy(b *testing.B) {
	if b.N > 1 {
		return
	}
	opts := bench.Options{
		Pairs: *pairs, Burst: *burst, Starts: *starts, Changes: *changes, Slow: min(*slow, *changes), Many: *many, Pace: *pace, ChangeSize: *at,
		Connector: build(b),
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
		},
	}
	for field := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		opts.Sizes = append(opts.Sizes, n)
		if *at == 0 && n <= 10000 {
			opts.ChangeSize = n
		}
	}
	var err error
	if opts.Firsthop, err = filepath.Abs(*program); err != nil {
		b.Fatal(err)
	}
	if *only != "" {
		opts.Only = strings.Split(*only, ",")
	}
	r := measureOrRead(b, opts)
	b.ReportMetric(0, "ns/op")
	if *docs != "" {
		write(b, *docs, r)
	} else {
		fmt.Fprintln(os.Stderr, bench.Markdown(r))
	}
}

func measureOrRead(t testing.TB, opts bench.Options) (r bench.Result) {
	t.Helper()
	if *from != "" {
		return read(t, strings.Split(*from, ","))
	}
	opts.Keep = func(r bench.Result) {
		if *results == "" {
			return
		}
		r.Command = *command
		data, err := json.Marshal(r)
		if err == nil {
			err = os.WriteFile(*results, data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r = bench.Measure(t, opts)
	r.Command = *command
	return r
}

// read reads what runs have kept; of those after the first one, the sizes that it has not.
func read(t testing.TB, paths []string) (r bench.Result) {
	t.Helper()
	for i, path := range paths {
		var next bench.Result
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &next)
		}
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			r = next
			continue
		}
		for _, s := range next.Sizes {
			s.Run = fmt.Sprintf("`%s` on %s", next.Command, next.Began.UTC().Format("2006-01-02 15:04 UTC"))
			r.Sizes = append(r.Sizes, s)
		}
	}
	return r
}

// write puts the figures into the document, and the plots beside it.
func write(t testing.TB, dir string, r bench.Result) {
	t.Helper()
	path := filepath.Join(dir, "benchmarks.md")
	document, err := os.ReadFile(path)
	if err == nil {
		document, err = bench.Insert(document, r)
	}
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{
		path: document,
		filepath.Join(dir, "benchmarks-connects.svg"): []byte(bench.ConnectsSVG(r)),
		filepath.Join(dir, "benchmarks-costs.svg"):    []byte(bench.CostsSVG(r)),
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func build(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "connector")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./connector")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the connector: %v\n%s", err, out)
	}
	return path
}
