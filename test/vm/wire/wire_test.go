package wire

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     []Event
	}{
		{"events", "H 5.10\nS a b\n> \n> x > y\nB \n", []Event{{Hello, "5.10"}, {Start, "a b"}, {Line, ""}, {Line, "x > y"}, {Bye, ""}}},
		{"noise is passed over", "SeaBIOS\n\nHello\n? x\n> x\n", []Event{{Line, "x"}}},
		{"a line that is cut off is none", "> x\nB ", []Event{{Line, "x"}}},
	} {
		var got []Event
		if err := Read(strings.NewReader(tc.in), func(e Event) { got = append(got, e) }); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("some text", 3, true)
	f.Fuzz(func(t *testing.T, text string, code int, late bool) {
		text = strings.ReplaceAll(text, "\n", "")
		var b bytes.Buffer
		b.WriteString("noise\n")
		want := Outcome{Code: code, Late: late}
		if err := Write(&b, Line, text); err != nil {
			t.Fatal(err)
		}
		if err := WriteOutcome(&b, want); err != nil {
			t.Fatal(err)
		}
		var got []Event
		if err := Read(&b, func(e Event) { got = append(got, e) }); err != nil || len(got) != 2 || got[0].Text != text {
			t.Fatalf("%q came back as %q, %v", text, got, err)
		}
		if o, err := got[1].Outcome(); err != nil || o != want {
			t.Errorf("%+v came back as %+v, %v", want, o, err)
		}
	})
}
