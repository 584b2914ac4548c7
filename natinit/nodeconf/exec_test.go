package nodeconf

import (
	"slices"
	"testing"
)

func TestExecCommands(t *testing.T) {
	env := map[string]string{"ARGS": "--a --b='c d'", "ONE": "x y", "EMPTY": ""}
	expand := newSpecifiers(files{"/etc/hostname": "node1.example\n"}, "k3s-a@b-c.service")
	for sentence, tc := range map[string]struct {
		value string
		want  [][]string
	}{
		"a lone variable becomes words, with its quotes":     {"/bin/k $ARGS $EMPTY end", [][]string{{"/bin/k", "--a", "--b=c d", "end"}}},
		"a lone variable in quotes too (kOps, kubespray)":    {`/bin/k "$ARGS"`, [][]string{{"/bin/k", "--a", "--b=c d"}}},
		"braces keep one word":                               {"/bin/k --x=${ONE} ${NONE}", [][]string{{"/bin/k", "--x=x y", ""}}},
		"a default in braces":                                {"/bin/k ${NONE:-d} ${ONE:+e}", [][]string{{"/bin/k", "d", "e"}}},
		"a variable inside of a word without braces is none": {"/bin/k --x=$ONE", [][]string{{"/bin/k", "--x=$ONE"}}},
		"two dollars are one":                                {"/bin/k $$ONE a$$b", [][]string{{"/bin/k", "$ONE", "a$b"}}},
		"a colon switches variables off":                     {"-:/bin/k $ARGS", [][]string{{"/bin/k", "$ARGS"}}},
		"an at sign has the process's own name follow":       {"@/bin/k kkk --a", [][]string{{"/bin/k", "--a"}}},
		"several commands in one line":                       {`/bin/a ; /bin/b \; c`, [][]string{{"/bin/a"}, {"/bin/b", ";", "c"}}},
		"quotes anywhere and escapes":                        {`/bin/k '--a=b c' --d="e"f\x2dg --h\sI`, [][]string{{"/bin/k", "--a=b c", "--d=ef-g", "--h I"}}},
		"an unknown escape stays":                            {`/bin/k a\qb`, [][]string{{"/bin/k", `a\qb`}}},
		"specifiers":                                         {"/bin/k %n %N %p %i %I %j %H %l %% %t %Z", [][]string{{"/bin/k", "k3s-a@b-c.service", "k3s-a@b-c", "k3s-a", "b-c", "b/c", "a", "node1.example", "node1", "%", "/run", "%Z"}}},
		"nothing":                                            {"", nil},
	} {
		if got := execCommands(tc.value, expand, env); !slices.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%s: %q, want %q", sentence, got, tc.want)
		}
	}
}
