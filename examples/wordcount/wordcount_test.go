package wordcount

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestCount counts a small tree in several shards and compares with a count of its own.
func TestCount(t *testing.T) {
	py, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIP: there is no python3")
	}
	for _, f := range []string{"count.py", "merge.py"} { // go test must know that its result depends on them
		if _, err := os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	tree, out := t.TempDir(), filepath.Join(t.TempDir(), "o[ 1]")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	for name, text := range map[string]string{
		"a.go": "one two\ttwo\nthree", "b/c.go": "three\x0bfour\r\n\xff\xfe two", "b/d/e.go": "", "b/d/f.go": "one\x00one \u00a0x",
		"b/g.txt": "not counted", "h.go/i.go": "two",
	} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(name) == ".go" {
			for _, w := range bytes.FieldsFunc([]byte(text), func(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }) {
				want[string(w)]++
			}
		}
	}
	if err := os.Symlink("a.go", filepath.Join(tree, "link.go")); err != nil {
		t.Fatal(err)
	}
	run := func(args []string, env ...string) []byte {
		t.Helper()
		cmd := exec.Command(py, args...)
		cmd.Env = append(os.Environ(), env...)
		b, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return b
	}
	// An attempt that dies before its part is in place leaves nothing that is counted.
	part := filepath.Join(out, "part-1")
	if err := os.MkdirAll(filepath.Join(part, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	dies := exec.Command(py, "count.py")
	dies.Env = append(os.Environ(), "SHARDS=3", "TREE="+tree, "OUT="+out, "LAUNCHER_TASK_INDEX=1", "LAUNCHER_ATTEMPT=7")
	if err := dies.Run(); err == nil {
		t.Fatal("a part was put over a directory")
	}
	if err := os.RemoveAll(part); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		run([]string{"count.py"}, "SHARDS=3", "TREE="+tree, "OUT="+out, fmt.Sprintf("LAUNCHER_TASK_INDEX=%d", i))
	}
	// An element that is run again changes nothing.
	run([]string{"count.py"}, "SHARDS=3", "TREE="+tree, "OUT="+out, "LAUNCHER_TASK_INDEX=1", "LAUNCHER_ATTEMPT=2")
	var lines string
	for _, w := range slices.Sorted(maps.Keys(want)) {
		lines += fmt.Sprintf("%d %s\n", want[w], w)
	}
	if got := run([]string{"merge.py", out}); string(got) != lines {
		t.Errorf("got %q\nwant %q", got, lines)
	}
}
