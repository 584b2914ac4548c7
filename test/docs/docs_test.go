package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const repository = "../.."

func pages(t *testing.T) []string {
	t.Helper()
	list, err := Pages(repository)
	if err != nil || len(list) < 30 {
		t.Fatalf("%d pages, %v", len(list), err)
	}
	return list
}

func text(t *testing.T, page string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// forUsers are the pages whose commands a test runs.
func forUsers(page string) bool {
	return page == "README.md" || page == "docs/upgrade.md" || page == "docs/leaving.md" || strings.HasPrefix(page, "docs/install/")
}

// TestBlocksAreRun: on the pages for users, each block of commands has a test, or a reason why it has none.
func TestBlocksAreRun(t *testing.T) {
	seen := map[string]bool{}
	for _, page := range pages(t) {
		blocks, err := Blocks(repository, page)
		if err != nil {
			t.Error(err)
		}
		for _, b := range blocks {
			at := fmt.Sprintf("%s:%d", page, b.Line)
			seen[b.Test], seen[b.NotRun] = true, true
			switch {
			case b.Test != "" && Runs[b.Test] == "":
				t.Errorf("%s: nothing runs the test %q", at, b.Test)
			case b.NotRun != "" && NotRun[b.NotRun] == "":
				t.Errorf("%s: there is no reason %q", at, b.NotRun)
			case b.Test != "" && b.NotRun != "":
				t.Errorf("%s: it is run and not run", at)
			case forUsers(page) && b.Test == "" && b.NotRun == "" && b.Language != "yaml" && b.Language != "text":
				t.Errorf("%s: no test runs this block, and no reason says why", at)
			}
		}
		if !forUsers(page) {
			continue
		}
		for i, line := range strings.Split(withoutBlocks(text(t, page)), "\n") {
			if strings.HasPrefix(line, "    ") && !strings.HasPrefix(strings.TrimSpace(line), "-") {
				t.Errorf("%s:%d: a block without a fence, which no test sees: %s", page, i+1, line)
			}
		}
	}
	for name := range Runs {
		if !seen[name] {
			t.Errorf("no page has a block of the test %q", name)
		}
	}
	for name := range NotRun {
		if !seen[name] {
			t.Errorf("no block has the reason %q", name)
		}
	}
}

var fenced = regexp.MustCompile("(?ms)^```.*?^```$")

// withoutBlocks empties fenced blocks, and keeps the numbers of lines.
func withoutBlocks(text string) string {
	return fenced.ReplaceAllStringFunc(text, func(block string) string { return strings.Repeat("\n", strings.Count(block, "\n")) })
}

var (
	link    = regexp.MustCompile(`!?\[[^\]]*\]\(([^)\s]+)\)|src(?:set)?="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

func links(t *testing.T, page string) (list []string) {
	for _, m := range link.FindAllStringSubmatch(withoutBlocks(text(t, page)), -1) {
		if to := m[1] + m[2]; !strings.Contains(to, "://") && !strings.HasPrefix(to, "mailto:") {
			list = append(list, to)
		}
	}
	return list
}

// anchors are the headings' names, as GitHub makes them.
func anchors(t *testing.T, page string) map[string]bool {
	names := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(withoutBlocks(text(t, page)), -1) {
		name := strings.ToLower(regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(m[1], ""))
		names[strings.ReplaceAll(name, " ", "-")] = true
	}
	return names
}

// TestLinksLeadSomewhere: each file and each heading that a page names is there.
func TestLinksLeadSomewhere(t *testing.T) {
	found := 0
	for _, page := range pages(t) {
		for _, to := range links(t, page) {
			found++
			file, anchor, _ := strings.Cut(to, "#")
			target := page
			if file != "" {
				target = path.Join(path.Dir(page), file)
			}
			info, err := os.Stat(filepath.Join(repository, target))
			if err != nil {
				t.Errorf("%s: %s leads nowhere", page, to)
				continue
			}
			if anchor != "" && (info.IsDir() || !anchors(t, target)[anchor]) {
				t.Errorf("%s: %s has no heading %q", page, target, anchor)
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d links", found)
	}
}

// TestIndexLeadsToEveryPage: by links from docs/README.md, through other indexes only.
func TestIndexLeadsToEveryPage(t *testing.T) {
	reached := map[string]bool{"README.md": true}
	var follow func(page string)
	follow = func(page string) {
		if reached[page] {
			return
		}
		reached[page] = true
		if path.Base(page) != "README.md" {
			return
		}
		for _, to := range links(t, page) {
			file, _, _ := strings.Cut(to, "#")
			if strings.HasSuffix(file, ".md") {
				follow(path.Join(path.Dir(page), file))
			}
		}
	}
	follow("docs/README.md")
	for _, page := range pages(t) {
		if !reached[page] && !strings.HasPrefix(page, "docs/decisions/") {
			t.Errorf("the index does not lead to %s", page)
		}
	}
}

// TestMessagesAreTheProgramsOwn: what the page about troubles quotes is in the program, literally but for "…".
func TestMessagesAreTheProgramsOwn(t *testing.T) {
	const page = "docs/troubleshooting.md"
	_, table, found := strings.Cut(text(t, page), "| message |")
	if !found {
		t.Fatal("there is no table of messages")
	}
	said := programText(t)
	rows := 0
	for line := range strings.Lines(table) {
		m := regexp.MustCompile("^\\| `([^`]*)` \\|").FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows++
		for part := range strings.SplitSeq(m[1], "…") {
			if part = strings.TrimSpace(part); part != "" && !strings.Contains(said, part) {
				t.Errorf("%s: the program does not say %q", page, part)
			}
		}
	}
	if rows < 20 {
		t.Errorf("only %d messages", rows)
	}
}

// programText is all text of the product: string literals of its source, and the chart.
func programText(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"cmd", "bootstrap", "runtime", "natinit", "mounts", "kernel", "units", "bpf", "deploy"} {
		err := filepath.WalkDir(filepath.Join(repository, dir), func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go"):
			case strings.Contains(name, "chart/templates"):
				var data []byte
				data, err = os.ReadFile(name)
				b.Write(data)
			case strings.HasSuffix(name, ".go"):
				err = literals(&b, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func literals(b *strings.Builder, file string) error {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		return err
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				b.WriteString(s + "\n")
			}
		}
		return true
	})
	return nil
}

// TestPagesAreHonest: no page may say that kube-proxy can go while packets from outside are not served.
func TestPagesAreHonest(t *testing.T) {
	for _, page := range pages(t) {
		if !strings.HasPrefix(page, "docs/install/") && !strings.HasPrefix(page, "docs/providers/") {
			continue
		}
		if !strings.Contains(text(t, page), "limits.md") {
			t.Errorf("%s does not say that packets from outside are not served", page)
		}
	}
}
