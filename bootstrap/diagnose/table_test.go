package diagnose

import "testing"

func TestFilterByName(t *testing.T) {
	table := []TableService{{Name: "default/web:http"}, {Name: "default/web:http at node b"}, {Name: "default/dns at node b"}, {Name: "other/db (IPv4)"}}
	for word, want := range map[string]int{
		"web": 2, "default/web": 2, "default/web:http": 2, "web:http": 2, "dns": 1, "default/dns": 1, "db": 1, "other/db": 1, "b": 0, "default": 0, "": 0,
	} {
		if got := len(Filter(table, word)); got != want {
			t.Errorf("%q: %d Services, want %d", word, got, want)
		}
	}
}
