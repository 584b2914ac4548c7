package nodeconf

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// shell evaluates what the scripts of services have outside of functions:
// assignments, other files that they source, and simple commands. Conditions
// are taken to be true, command substitutions to be empty, and nothing runs.
type shell struct {
	host     FS
	env      map[string]string
	commands [][]string
	depth    int
	config   *expand.Config
}

// maxSource bounds how deep files may source each other.
const maxSource = 4

// maxValue bounds a variable; what the kernel lets a program have is shorter.
const maxValue = 1 << 17

func newShell(host FS, env map[string]string) *shell {
	sh := &shell{host: host, env: map[string]string{}}
	maps.Copy(sh.env, env)
	sh.config = &expand.Config{
		Env:       sh,
		CmdSubst:  func(io.Writer, *syntax.CmdSubst) error { return nil },
		ProcSubst: func(*syntax.ProcSubst) (string, error) { return "", nil },
	}
	return sh
}

// Get gives a variable to the expansion of words.
func (sh *shell) Get(name string) expand.Variable {
	if user, ok := strings.CutPrefix(name, "HOME "); ok { // of another user: nothing is looked up
		return expand.Variable{Set: true, Kind: expand.String, Str: "~" + user}
	}
	value, ok := sh.env[name]
	return expand.Variable{Set: ok, Kind: expand.String, Str: value}
}

// Each gives no names: nothing that is read of a service depends on them.
func (sh *shell) Each(func(string, expand.Variable) bool) {}

// Set takes what ${NAME:=word} assigns.
func (sh *shell) Set(name string, v expand.Variable) error {
	if sh.env[name] = v.String(); len(sh.env[name]) > maxValue { // a=$a$a, again and again
		sh.env[name] = ""
	}
	return nil
}

// statements parses a script up to the first error. The iterator of 3.14 may
// go on after that: it must not be left early.
func statements(script string) (list []*syntax.Stmt, err error) {
	for stmt, e := range syntax.NewParser().StmtsSeq(strings.NewReader(script)) {
		if err = cmp.Or(err, e); err == nil {
			list = append(list, stmt)
		}
	}
	return list, err
}

// run evaluates a script up to the first thing that is no shell's.
func (sh *shell) run(script string) {
	list, _ := statements(script)
	for _, stmt := range list {
		syntax.Walk(stmt, func(node syntax.Node) bool {
			switch n := node.(type) {
			case *syntax.FuncDecl, *syntax.Word:
				return false
			case *syntax.DeclClause:
				sh.assign(n.Args)
			case *syntax.CallExpr:
				sh.assign(n.Assigns)
				sh.command(sh.words(n.Args))
			}
			return true
		})
	}
}

func (sh *shell) assign(list []*syntax.Assign) {
	for _, a := range list {
		if a.Naked || a.Name == nil {
			continue
		}
		value, _ := expand.Literal(sh.config, a.Value)
		if a.Append {
			value = sh.env[a.Name.Value] + value
		}
		_ = sh.Set(a.Name.Value, expand.Variable{Kind: expand.String, Str: value})
	}
}

// words expands words, and splits what unquoted variables give. Braces mean nothing, as in sh: {1..1000000000} would take
// all memory.
func (sh *shell) words(list []*syntax.Word) []string {
	var out []string
	for _, w := range list {
		if hasBrace(w) {
			if value, err := expand.Literal(sh.config, w); err == nil {
				out = append(out, value)
			}
			continue
		}
		fields, err := expand.Fields(sh.config, w)
		if err == nil {
			out = append(out, fields...)
		}
	}
	return out
}

func hasBrace(w *syntax.Word) bool {
	return slices.ContainsFunc(w.Parts, func(p syntax.WordPart) bool {
		lit, ok := p.(*syntax.Lit)
		return ok && strings.Contains(lit.Value, "{")
	})
}

// starters run the command that follows them.
var starters = []string{"exec", "nohup", "eval"}

func (sh *shell) command(words []string) {
	for len(words) > 0 && slices.Contains(starters, words[0]) {
		words = words[1:]
	}
	switch {
	case len(words) == 2 && (words[0] == "." || words[0] == "source"):
		sh.source(words[1])
	case len(words) > 0:
		sh.commands = append(sh.commands, words)
	}
}

func (sh *shell) source(path string) {
	if sh.depth >= maxSource {
		return
	}
	if b, err := sh.host.ReadFile(path); err == nil {
		sh.depth++
		sh.run(string(b))
		sh.depth--
	}
}

// SplitArgs splits a file or text of arguments as a shell does, with variables
// from env: the args files of snaps, a command line in quotes. What is no
// shell's is split at blanks.
func SplitArgs(host FS, text string, env map[string]string) []string {
	sh := newShell(host, env)
	list, err := statements(text)
	if err != nil {
		return strings.Fields(text)
	}
	var out []string
	for _, stmt := range list {
		syntax.Walk(stmt, func(node syntax.Node) bool {
			if call, ok := node.(*syntax.CallExpr); ok {
				out = append(out, sh.words(call.Args)...)
			}
			return true
		})
	}
	return out
}
