package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// generated is the first line of a page that is made from the program.
const generated = "<!-- Made from the program: go test ./%s -run TestReference -update. A test compares. -->\n\n"

// TestReference: docs/reference has every command, flag and variable, and what the program ends with and writes on Nodes.
func TestReference(t *testing.T) {
	for name, page := range map[string]string{"commands.md": commandsPage(t), "conditions.md": conditionsPage(t)} {
		file := "../../docs/reference/" + name
		want := fmt.Sprintf(generated, "cmd/firsthop") + page
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("docs/reference/%s is not what the program makes (%v): go test ./cmd/firsthop -run TestReference -update", name, err)
		}
	}
}

func commandsPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString("# Commands, flags and environment variables\n\n")
	b.WriteString("`firsthop COMMAND --help` says the same. A flag goes before its variable. An empty variable is treated as unset. Unknown flags, commands and\n`FIRSTHOP_*` variables are refused.\n\n")
	b.WriteString("`KUBERNETES_SERVICE_IPS_PORTS` and `KUBERNETES_APISERVER_ENDPOINTS` are the variables of `--service-ips` and `--endpoints`.\n")
	found := 0
	var write func(prefix string, commands []*cli.Command)
	write = func(prefix string, commands []*cli.Command) {
		for _, c := range commands {
			if c.Hidden {
				continue
			}
			found++
			name := prefix + c.Name
			fmt.Fprintf(&b, "\n## %s\n\n%s.\n", name, upperFirst(c.Usage))
			if text := strings.TrimSpace(c.Description); text != "" {
				fmt.Fprintf(&b, "\n%s\n", text)
			}
			if len(c.Flags) > 0 {
				b.WriteString("\n| flag | variable | default | |\n|---|---|---|---|\n")
			}
			for _, f := range c.Flags {
				d, ok := f.(cli.DocGenerationFlag)
				if !ok {
					t.Fatalf("%s: flag %v has no text", name, f.Names())
				}
				b.WriteString(flagRow(f.Names(), d))
			}
			write(name+" ", c.Subcommands)
		}
	}
	write("firsthop ", newApp(osEnv()).Commands)
	if found < 15 {
		t.Errorf("only %d commands", found)
	}
	return b.String()
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

var placeholder = regexp.MustCompile("`([^`]*)`")

func flagRow(names []string, f cli.DocGenerationFlag) string {
	usage := f.GetUsage()
	value := ""
	if m := placeholder.FindStringSubmatch(usage); m != nil && f.TakesValue() {
		value = " " + m[1]
		usage = strings.Replace(usage, m[0], m[1], 1)
	}
	var flags []string
	for _, n := range names {
		if len(n) == 1 {
			flags = append(flags, "`-"+n+"`")
		} else {
			flags = append(flags, "`--"+n+value+"`")
		}
	}
	var variables []string
	for _, v := range f.GetEnvVars() {
		variables = append(variables, "`"+v+"`")
	}
	byDefault := f.GetDefaultText()
	if byDefault == "" {
		byDefault = f.GetValue()
	}
	if byDefault = strings.Trim(byDefault, `"`); byDefault == "[]" || strings.Contains(usage, "(default: ") {
		byDefault = "" // or the text says it
	}
	cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
	return fmt.Sprintf("| %s | %s | %s | %s |\n", cell(strings.Join(flags, ", ")), cell(strings.Join(variables, ", ")), cell(byDefault), cell(usage))
}

func conditionsPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# Node label, condition, exit codes, checks

## On the Node

The label ` + "`firsthop.io/proxy`" + ` and the condition ` + "`FirsthopReady`" + ` are about connections of that node. Packets from outside of the cluster
[are not served](../limits.md), whatever they say.

| label | |
|---|---|
`)
	for _, c := range constants(t, "../../runtime/nodestatus/nodestatus.go", "Mode") {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.value, c.text)
	}
	b.WriteString("\nThe condition's heartbeat is every five minutes. One that is older than a quarter of an hour is stale.\n\n| reason | status |\n|---|---|\n")
	for _, r := range conditionReasons(t) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", r[0], r[1])
	}
	b.WriteString("\n## Exit codes\n\n| code | |\n|---|---|\n")
	for _, c := range constants(t, "../../bootstrap/exit.go", "ExitCode") {
		fmt.Fprintf(&b, "| %s | %s |\n", c.value, c.text)
	}
	b.WriteString("\n`--best-effort` reports the same and exits 0, except for 64.\n\n## Problems of Services\n\nIn `status`, `doctor`, the log, and as `reason` of the metric `firsthop_service_problems`.\n\n| reason | |\n|---|---|\n")
	for _, c := range constants(t, "../../runtime/services/problem.go", "Reason") {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.value, c.text)
	}
	b.WriteString("\n## Checks\n\n`ok`, `warn`, `fail` or `skip` each.\n\n")
	fmt.Fprintf(&b, "- `firsthop check`: %s\n", strings.Join(checkNames(t, "../../bootstrap/diagnose/check.go"), ", "))
	fmt.Fprintf(&b, "- `firsthop doctor`: %s\n", strings.Join(checkNames(t, "../../bootstrap/diagnose/doctor.go"), ", "))
	return b.String()
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type constant struct{ value, text string }

// constants are those of a type in a file, with the comments on or above them.
func constants(t *testing.T, file, of string) (list []constant) {
	t.Helper()
	ast.Inspect(parse(t, file), func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); !ok || id.Name != of {
			return true
		}
		lit, ok := v.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		text := v.Comment.Text()
		if text == "" {
			_, text, _ = strings.Cut(v.Doc.Text(), ": ") // "Name: what it is"
		}
		if text = strings.Join(strings.Fields(text), " "); text == "" {
			t.Errorf("%s: %s has no comment", file, v.Names[0])
		}
		list = append(list, constant{strings.Trim(lit.Value, `"`), text})
		return true
	})
	if len(list) < 2 {
		t.Errorf("%s: %d constants of %s", file, len(list), of)
	}
	return list
}

// conditionReasons are those that the runtime's reporter writes.
func conditionReasons(t *testing.T) (list [][2]string) {
	t.Helper()
	str := func(e ast.Expr) (string, bool) {
		lit, ok := e.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return "", false
		}
		s, err := strconv.Unquote(lit.Value)
		return s, err == nil
	}
	ast.Inspect(parse(t, "../../runtime/reporter.go"), func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "not" && len(n.Args) == 3 {
				if reason, ok := str(n.Args[1]); ok {
					list = append(list, [2]string{reason, "False"})
				}
			}
		case *ast.KeyValueExpr:
			if id, ok := n.Key.(*ast.Ident); ok && id.Name == "Reason" {
				if reason, ok := str(n.Value); ok {
					list = append(list, [2]string{reason, "True"})
				}
			}
		}
		return true
	})
	if len(list) < 4 {
		t.Errorf("reasons of the condition: %q", list)
	}
	return list
}

// checkNames are the names in a file's table of checks.
func checkNames(t *testing.T, file string) (names []string) {
	t.Helper()
	ast.Inspect(parse(t, file), func(n ast.Node) bool {
		row, ok := n.(*ast.CompositeLit)
		if !ok || row.Type != nil || len(row.Elts) < 2 {
			return true
		}
		lit, ok := row.Elts[0].(*ast.BasicLit)
		if _, method := row.Elts[len(row.Elts)-1].(*ast.SelectorExpr); ok && method && lit.Kind == token.STRING {
			names = append(names, "`"+strings.Trim(lit.Value, `"`)+"`")
		}
		return true
	})
	if len(names) < 5 {
		t.Errorf("%s: checks %q", file, names)
	}
	return names
}
