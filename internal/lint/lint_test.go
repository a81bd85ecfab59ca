package lint

import (
	"bytes"
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

type file struct {
	path, dir string
	test      bool
	lines     int
	ast       *ast.File
	pos       *token.FileSet
}

// tree parses every Go file of the repository.
func tree(t *testing.T) []file {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var out []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "dist") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, rel, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		out = append(out, file{path: rel, dir: filepath.Dir(rel), test: strings.HasSuffix(p, "_test.go"), lines: bytes.Count(src, []byte("\n")), ast: f, pos: set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("only %d Go files found: the walk is broken", len(out))
	}
	return out
}

func below(dir, of string) bool { return dir == of || (of != "." && strings.HasPrefix(dir, of+"/")) }

func imports(f file) []string {
	var out []string
	for _, i := range f.ast.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

// local gives the folder of one of our own import paths.
func local(path string) (string, bool) {
	if path == module {
		return ".", true
	}
	rest, ok := strings.CutPrefix(path, module+"/")
	return rest, ok
}

// judge says why dir must not import to, or "".
func judge(dir, to string) string {
	if below(dir, "launcher") || dir == to {
		return ""
	}
	for _, a := range notFrom {
		if below(dir, a.from) && below(to, a.to) {
			return a.why
		}
	}
	if slices.Contains(shared, to) {
		return ""
	}
	for _, a := range arrows {
		if below(dir, a.from) && below(to, a.to) {
			return ""
		}
	}
	return "the table in internal/lint has no such arrow; if it is right, add it with its reason"
}

func TestImportsRunOneWay(t *testing.T) {
	for _, f := range tree(t) {
		if f.test {
			continue // tests may reach across, for end to end checks
		}
		for _, p := range imports(f) {
			to, ours := local(p)
			if !ours {
				continue
			}
			if why := judge(f.dir, to); why != "" {
				t.Errorf("%s imports %s: %s", f.path, to, why)
			}
		}
	}
}

func TestJudgeRefuses(t *testing.T) {
	for _, c := range [][2]string{{"head", "agent/core"}, {"agent", "head/journal"}, {"head", "backends/local"}, {"wire", "head"}, {"jobs/run", "head/core"}, {"configs", "broker"}} {
		if judge(c[0], c[1]) == "" {
			t.Errorf("%s may import %s: the table lets it through", c[0], c[1])
		}
	}
}

func TestCoresArePure(t *testing.T) {
	seen := 0
	for _, f := range tree(t) {
		if f.test || !(below(f.dir, "head/core") || below(f.dir, "agent/core") || below(f.dir, "jobs")) {
			continue
		}
		seen++
		for _, p := range imports(f) {
			if why, bad := impure[p]; bad || strings.HasPrefix(p, "net/") {
				t.Errorf("%s imports %s: a core must not (%s)", f.path, p, why)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a core starts no goroutine", f.pos.Position(g.Pos()))
			}
			return true
		})
	}
	if seen == 0 {
		t.Fatal("no core found")
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	docs, dirs := map[string]int{}, map[string]bool{}
	for _, f := range tree(t) {
		if f.test {
			continue
		}
		dirs[f.dir] = true
		if f.ast.Doc != nil {
			docs[f.dir]++
		}
	}
	for d := range dirs {
		if docs[d] == 0 {
			t.Errorf("%s: no package comment", d)
		}
	}
}

func TestFilesReadInOneSitting(t *testing.T) {
	for _, f := range tree(t) {
		if !f.test && f.lines > maxLines && !ast.IsGenerated(f.ast) {
			t.Errorf("%s has %d lines; split it (the limit is %d)", f.path, f.lines, maxLines)
		}
	}
}

// TestNoSleeps: a test that sleeps is slow when it passes and flaky when it fails.
func TestNoSleeps(t *testing.T) {
	for _, f := range tree(t) {
		if !f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && !commented(f, s.Pos()) {
					t.Errorf("%s: time.Sleep in a test (wait for an event; or say why on the line or above it: // sleep: ...)", f.pos.Position(s.Pos()))
				}
			}
			return true
		})
	}
}

func commented(f file, p token.Pos) bool {
	line := f.pos.Position(p).Line
	for _, g := range f.ast.Comments {
		for _, c := range g.List {
			if at := f.pos.Position(c.Pos()).Line; (at == line || at == line-1) && strings.HasPrefix(c.Text, "// sleep:") {
				return true
			}
		}
	}
	return false
}
