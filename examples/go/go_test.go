// Package examples runs the Go examples, each on a local cluster.
package examples

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// run builds an example and runs it on a cluster that is up for it.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	h := testkit.New(t)
	program := filepath.Join(h.Work, name)
	if out, err := exec.Command("go", "build", "-o", program, "launcher/examples/go/"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	spec := filepath.Join(h.Work, "cluster.toml")
	if err := os.WriteFile(spec, []byte("version = 1\nname = \"ex\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.OK("up", spec)
	defer h.OK("down", "ex")
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	r := testkit.Finish(h.Program(ctx, program, args...))
	if r.Code != 0 {
		t.Fatalf("%s: %s", name, r)
	}
	return r.Out
}

func TestPi(t *testing.T) {
	out := run(t, "pi", "-tasks", "8", "-darts", "200000")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "8 of 8 tasks: pi is about 3.14") {
		t.Errorf("%q", lines)
	}
}

func TestWordCount(t *testing.T) {
	out := run(t, "wordcount", "-parts", "6", "-words", "20000", "-reducers", "3", "-check")
	if !strings.HasPrefix(out, "120000 words, ") || !strings.HasSuffix(out, "the same as counted here\n") {
		t.Error(out)
	}
}

func TestPending(t *testing.T) {
	sum := 0
	for i := range 400 {
		if (i+1)%100 == 0 {
			continue
		}
		for n := i + 1; n != 1; sum++ {
			if n%2 == 0 {
				n /= 2
			} else {
				n = 3*n + 1
			}
		}
	}
	want := fmt.Sprintf("396 inputs done, 4 skipped, %d steps in all, at most 16 pending\n", sum)
	if out := run(t, "pending", "-inputs", "400", "-pending", "16"); out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
