package test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// habit is something that product code does not do, but for exceptions.
type habit struct {
	what string
	// names are calls as "import path.Name", or imports as the path alone.
	names []string
	// exceptions are packages, by their directory, with the reason.
	exceptions map[string]string
	instead    string
}

var habits = []habit{
	{
		what: "reads the environment",
		names: []string{
			"os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv", "os.UserHomeDir", "os.UserConfigDir", "os.UserCacheDir",
			"syscall.Getenv", "syscall.Environ", "golang.org/x/sys/unix.Getenv", "golang.org/x/sys/unix.Environ",
		},
		exceptions: map[string]string{
			"cmd/firsthop":       "the one place that does",
			"natinit/credplugin": "a plugin inherits it, as the protocol says: proxies, cloud profiles",
		},
		instead: "take the value from a Config that cmd fills in",
	},
	{
		what:  "starts processes",
		names: []string{"os/exec", "os.StartProcess", "syscall.ForkExec", "syscall.StartProcess", "syscall.Exec", "golang.org/x/sys/unix.Exec"},
		exceptions: map[string]string{
			"natinit/proof":      "the proof is made by a child of ours in the attached cgroup: this very binary, not a shell",
			"natinit/credplugin": "a kubeconfig names a program for its credentials: there is no other way",
		},
		instead: "use the system call, netlink or D-Bus",
	},
	{
		what:  "writes files by path, which follows links and is not done at once",
		names: []string{"os.WriteFile", "os.Create", "os.CreateTemp", "os.MkdirAll", "golang.org/x/sys/unix.Flock", "syscall.Flock"},
		exceptions: map[string]string{
			"natinit/proof":         "cgroup.procs is written in place",
			"natinit/instance":      "it is the way to do it",
			"mounts":                "the directory below a mount point is locked",
			"units":                 "directories of links below /etc/systemd/system are the init system's, not ours",
			"deploy/build/image":    "builds",
			"deploy/build/packages": "builds",
		},
		instead: "use natinit/instance: Replace, WriteFile, Make, Acquire",
	},
	{
		what:    "needs cgo",
		names:   []string{"C"},
		instead: "use golang.org/x/sys/unix",
	},
	{
		what:       "ends the process",
		names:      []string{"os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln"},
		exceptions: map[string]string{"cmd/firsthop": "main does"},
		instead:    "return an error",
	},
	{
		what:    "imports the standard library's package log",
		names:   []string{"log"},
		instead: "take a *slog.Logger",
	},
}

// use is one import, or one mention of a name of an imported package.
type use struct {
	name string
	pos  token.Position
}

// uses lists the imports of a file and what it mentions of them. A dot import is listed as an import only.
func uses(fset *token.FileSet, file *ast.File) []use {
	var list []use
	paths := make(map[string]string)
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		list = append(list, use{path, fset.Position(spec.Pos())})
		name := path[strings.LastIndexByte(path, '/')+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		paths[name] = path
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok && paths[id.Name] != "" {
				list = append(list, use{paths[id.Name] + "." + sel.Sel.Name, fset.Position(sel.Pos())})
			}
		}
		return true
	})
	return list
}

// complaints returns what is wrong with a file in a package, given by its directory.
func complaints(dir string, fset *token.FileSet, file *ast.File) []string {
	var list []string
	imported := make(map[string]bool)
	for _, u := range uses(fset, file) {
		imported[u.name] = true
		for _, h := range habits {
			if h.exceptions[dir] == "" && slices.Contains(h.names, u.name) {
				list = append(list, fmt.Sprintf("%s: %s %s (%s): %s", u.pos, dir, h.what, u.name, h.instead))
			}
		}
	}
	if imported["runtime"] && imported[module+"/runtime"] {
		list = append(list, fmt.Sprintf("%s imports both packages named runtime: use two files", fset.Position(file.Pos())))
	}
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			list = append(list, fmt.Sprintf("%s: %s has an init function: the start of the binary is measured; do it when it is asked for",
				fset.Position(f.Pos()), dir))
		}
	}
	return list
}

func TestComplaints(t *testing.T) {
	for _, tc := range []struct {
		name, dir, source, want string
	}{
		{"the environment is read in cmd", "cmd/firsthop", `import "os"; var _ = os.Getenv("A")`, ""},
		{"and nowhere else", "mounts", `import "os"; var _ = os.Getenv("A")`, "reads the environment"},
		{"not as a value", "mounts", `import "os"; var _ = os.LookupEnv`, "reads the environment"},
		{"not under another name", "mounts", `import sys "os"; var _ = sys.Environ()`, "reads the environment"},
		{"other parts of package os are fine", "mounts", `import "os"; var _ = os.Getpid()`, ""},
		{"a field with a package's name is not that package", "mounts", `var _ = struct{ os int }{}`, ""},
		{"no shelling out", "units", `import "os/exec"; var _ = exec.Command`, "starts processes"},
		{"but for the proof", "natinit/proof", `import "os/exec"; var _ = exec.Command`, ""},
		{"no cgo", "bpf", `import "C"`, "needs cgo"},
		{"no exit", "natinit", `import "os"; func f() { os.Exit(1) }`, "ends the process"},
		{"no init", "natinit", `func init() {}`, "has an init function"},
		{"a method may be called so", "natinit", `type T int; func (T) init() {}`, ""},
		{"two packages named runtime in one file", "cmd/firsthop",
			`import ("runtime"; r "` + module + `/runtime"); var _, _ = runtime.GOOS, r.X`, "both packages named runtime"},
	} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, "x.go", "package p; "+tc.source, 0)
		if err != nil {
			t.Fatal(tc.name, err)
		}
		got := strings.Join(complaints(tc.dir, fset, file), "\n")
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestProductCodeKeepsTheHabits(t *testing.T) {
	files := 0
	for top := range arrows {
		if top == testSupport {
			continue
		}
		err := filepath.WalkDir(filepath.Join("..", top), func(path string, d fs.DirEntry, err error) error {
			if d == nil && err != nil { // a directory of the tree that has yet to come
				return fs.SkipAll
			}
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "testdata" {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); d.IsDir() && err == nil { // a module of its own: tools
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			files++
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			dir, err := filepath.Rel("..", filepath.Dir(path))
			if err != nil {
				return err
			}
			for _, c := range complaints(dir, fset, file) {
				t.Error(c)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files == 0 {
		t.Error("found no product code")
	}
}
