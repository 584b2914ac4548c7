package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sections are the page's, by the names of their headings: what stands below .SS, and below .SH without its .SS.
func sections(page string) map[string]string {
	found := map[string]string{}
	name := ""
	for line := range strings.Lines(page) {
		if heading, ok := strings.CutPrefix(line, ".SS "); ok {
			name = strings.TrimSpace(heading)
			continue
		}
		if heading, ok := strings.CutPrefix(line, ".SH "); ok {
			name = strings.TrimSpace(heading)
			continue
		}
		found[name] += line
	}
	return found
}

// subcommand is what follows a command that has a section of its own: "lookup IP:PORT".
var subcommand = regexp.MustCompile(`^[a-z]+( |$)`)

// The page is compared with what the program offers to shells, which is not the help that the page is made of.
func TestManPageHasAllCommandsAndFlags(t *testing.T) {
	b := newBuild(t)
	program := b.Programs[0].Path
	page, err := b.manPage(t.Context(), "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	in := sections(page)
	flag := regexp.MustCompile(`\\-\\-([a-z][a-z0-9]*(?:\\-[a-z0-9]+)*)`)
	offered := func(args ...string) []string {
		out, err := exec.Command(program, append(args, "--generate-bash-completion")...).Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return slices.DeleteFunc(strings.Fields(string(out)), func(w string) bool {
			name, _, _ := strings.Cut(w, ":")
			return name == "help" || name == "h" || name == "--help" || len(name) == 2 && name[0] == '-'
		})
	}
	common := in["COMMON OPTIONS"]
	for heading, text := range in {
		if strings.HasSuffix(heading, ")") || strings.HasPrefix(heading, "Output") || strings.HasPrefix(heading, "API") || strings.HasPrefix(heading, "Instance") {
			common += text
		}
	}
	commands := offered()
	if len(commands) < 8 {
		t.Fatalf("the program offers the commands %q", commands)
	}
	for _, command := range commands {
		var text string
		for heading, has := range in {
			first, rest, _ := strings.Cut(heading, " ")
			if first == command && !subcommand.MatchString(rest) {
				text = has
			}
		}
		if text == "" {
			t.Errorf("the page has no section about %s", command)
			continue
		}
		var has []string
		for line := range strings.Lines(text) { // flags are named in text too
			if strings.HasPrefix(line, `.B \-`) || strings.HasPrefix(line, "Common options: ") {
				for _, m := range flag.FindAllStringSubmatch(line, -1) {
					has = append(has, "--"+strings.ReplaceAll(m[1], `\-`, "-"))
				}
			}
		}
		want := offered(command, "-")
		want = slices.DeleteFunc(want, func(w string) bool { return !strings.HasPrefix(w, "--") })
		slices.Sort(has)
		slices.Sort(want)
		if !slices.Equal(has, slices.Compact(want)) {
			t.Errorf("%s: the page has\n%q, the program\n%q", command, has, want)
		}
		for _, name := range want {
			roffed := strings.ReplaceAll(name, "-", `\-`)
			if !strings.Contains(common, ".B "+roffed) && !strings.Contains(text, ".B "+roffed) {
				t.Errorf("%s: the page does not say what %s is", command, name)
			}
		}
	}
}

// Flags and files that the written part of the page and the settings file name must be there.
func TestWhatTheFrameNamesIsThere(t *testing.T) {
	b := newBuild(t)
	list, err := b.contents(t.Context(), "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	_, commands, err := readHelp(t.Context(), b.Programs[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	var help strings.Builder
	for _, c := range commands {
		for _, o := range c.Options {
			help.WriteString(o.Names + " " + o.Usage + "\n")
		}
	}
	for _, f := range list {
		switch f.path {
		case "/etc/default/firsthop":
			for _, m := range regexp.MustCompile(`(?m)^# ([A-Z_]+)=`).FindAllStringSubmatch(string(f.data), -1) {
				if !strings.Contains(help.String(), "$"+m[1]+"]") {
					t.Errorf("%s has %s, which no flag takes", f.path, m[1])
				}
			}
		case "/usr/share/man/man8/firsthop.8.gz":
			for _, m := range regexp.MustCompile(`\\-\\-([a-z][a-z0-9]*(?:\\-[a-z0-9]+)*)`).FindAllStringSubmatch(unzip(t, f.data), -1) {
				if name := "--" + strings.ReplaceAll(m[1], `\-`, "-"); !strings.Contains(help.String(), name) {
					t.Errorf("the page names %s, which there is not", name)
				}
			}
		}
	}
}

func TestManPageRenders(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not installed (Debian package groff-base)")
	}
	page, err := newBuild(t).manPage(t.Context(), "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("groff", "-Tutf8", "-P-cbou", "-man", "-ww")
	cmd.Stdin = strings.NewReader(page)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil || complaints.Len() > 0 {
		t.Errorf("groff: %v\n%s", err, &complaints)
	}
	for _, want := range []string{"COMMANDS", "PROTO/IP:PORT=IP:PORT[,…]", "EXAMPLES"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not on the rendered page", want)
		}
	}
}

func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		".a":      `\&.a`,
		"'a":      `\&'a`,
		"a\n.b":   "a\n" + `\&.b`,
		`a\b`:     `a\eb`,
		"--a-b":   `\-\-a\-b`,
		"[,…]":    `[,\[u2026]]`,
		"me@here": `me\(athere`,
	} {
		if got := roff(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseHelpRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for _, text := range []string{"", "OPTIONS:\n   --a  b\n", "NAME:\n   x - y\n\nOPTIONS:\n        a second line without a first\n"} {
		if _, err := parseHelp(text); err == nil {
			t.Errorf("%q is understood", text)
		}
	}
}

func TestParseHelpJoinsLines(t *testing.T) {
	c, err := parseHelp("NAME:\n   x - y\n      z\n\nOPTIONS:\n   --a-long-name NAME\n         b\n         c (default: false)\n   --d  e\n\n   Category:\n\n   --f  g\n        h:\n")
	want := []Option{{"--a-long-name NAME", "b c", ""}, {"--d", "e", ""}, {"--f", "g h:", "Category"}}
	if err != nil || c.Usage != "y z" || !slices.Equal(c.Options, want) {
		t.Errorf("%v: %+v", err, c)
	}
}

func FuzzParseHelp(f *testing.F) {
	f.Add("NAME:\n   x - y\n\nUSAGE:\n   x [options] a\n\nDESCRIPTION:\n   d\n\n   e\n\nOPTIONS:\n   --a b, -c  d (default: 1)\n\n   Category:\n\n   --e  f\n")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = parseHelp(text) })
}

func TestNoProgramForThisMachine(t *testing.T) {
	b := Build{Repository: repository, Version: "v1.0.0", Time: built, Programs: []Program{{"s390x", "/x"}}}
	if _, err := b.WriteTo(t.Context(), filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "none of the programs is for") {
		t.Errorf("%v", err)
	}
}
