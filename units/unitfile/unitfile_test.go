package unitfile

import (
	"runtime"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for sentence, tc := range map[string]struct{ text, want string }{
		"a continued line becomes one with blanks":                    {"[Service]\nExecStart=/bin/k \\\n  --a \\\n  --b\n", "Service.ExecStart=/bin/k    --a    --b"},
		"a comment inside of a continued line is left out":            {"[Service]\nExecStart=/bin/k \\\n# --a \\\n; x\n  --b\n", "Service.ExecStart=/bin/k    --b"},
		"blanks around the equals sign do not count":                  {"[Service]\n  Environment = A=b \n", "Service.Environment=A=b"},
		"two backslashes at the end are one escaped, no continuation": {"[Service]\nA=x\\\\\nB=y\n", "Service.A=x\\\\\nService.B=y"},
		"a continued line at the end of the file":                     {"[Service]\nA=x \\", "Service.A=x"},
		"Windows' line ends and a byte order mark":                    {"\uFEFF[Service]\r\nA=x\r\nB=y \\\r\n z\r\n", "Service.A=x\nService.B=y   z"},
		"what is no assignment is left out":                           {"[Service]\nnothing\n[Unit\nA=x\n", "Service.A=x"},
		"a value may have equals signs":                               {"[Unit]\n[Service]\nE=A=--b=c\n", "Service.E=A=--b=c"},
	} {
		var got []string
		for _, s := range Parse(tc.text) {
			got = append(got, s.Section+"."+s.Key+"="+s.Value)
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s:\n%q, want\n%q", sentence, s, tc.want)
		}
	}
}

// A line that goes on and on costs no more than its length: a damaged unit must not hold a start up.
func TestParseIsLinear(t *testing.T) {
	text := "[Service]\nExecStart=" + strings.Repeat("\\\n", 20_000) + "x\n"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := Parse(text)
	runtime.ReadMemStats(&after)
	if len(got) != 1 || got[0].Key != "ExecStart" || got[0].Value != "x" {
		t.Errorf("it is read as %.3v", got)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes are allocated for a text of %d", n, len(text))
	}
}
