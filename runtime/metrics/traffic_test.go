package metrics

import (
	"os"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
)

func TestTrafficDoesNotFall(t *testing.T) {
	now := map[uint32]bpf.Counters{1024: {Translated: 100}, 1025: {Translated: 1, Refused: 1}}
	cfg := Config{
		Counters: func(each func(uint32, bpf.Counters)) error {
			for i, c := range now {
				each(i, c)
			}
			return nil
		},
		Indexes: func() map[uint32]services.PortKey {
			return map[uint32]services.PortKey{1024: webPort(false)}
		},
		PerService: true,
	}
	m := New(cfg)
	service := []string{"namespace", "default", "service", "web", "port", "http", "protocol", "tcp", "ip_family", "IPv4"}
	check := func(sum, own float64) {
		t.Helper()
		f := parse(t, m.Page())
		if got := f.value(t, "firsthop_translated_total"); got != sum {
			t.Errorf("all: %v, want %v", got, sum)
		}
		if got := f.value(t, "firsthop_service_translated_total", service...); got != own {
			t.Errorf("the Service: %v, want %v", got, own)
		}
	}
	check(101, 100)
	delete(now, 1024) // as a reader leaves out what never counted
	check(101, 0)
	now[1024] = bpf.Counters{Translated: 150}
	check(251, 150)
	now[1024] = bpf.Counters{Translated: 20} // reset between two pages
	check(271, 20)
}

func TestTrafficKeepsItsSumOnErrors(t *testing.T) {
	fails := false
	m := New(Config{Counters: func(each func(uint32, bpf.Counters)) error {
		each(1024, bpf.Counters{Translated: 5})
		if fails {
			return os.ErrPermission
		}
		return nil
	}})
	for range 2 {
		f := parse(t, m.Page())
		if got := f.value(t, "firsthop_translated_total"); got != 5 {
			t.Error(got)
		}
		fails = true
	}
	f := parse(t, m.Page())
	if e, n := f.value(t, "firsthop_traffic_read_errors_total"), f.value(t, "firsthop_translated_total"); e != 2 || n != 5 {
		t.Error(e, n)
	}
}
