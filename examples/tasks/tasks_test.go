// Package tasks runs the Python examples: each by plain python, on a cluster of its own,
// and as a job of a cluster that is up.
package tasks

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"launcher/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// examples are the programs, what they are given here, and what they must print.
var examples = []struct {
	file string
	args []string
	says string
}{
	{"pi.py", []string{"8", "20000"}, `8 of 8 tasks: pi is about 3\.1`},
	{"wordcount.py", []string{"TEXTS"}, `^2 files, 10 words, 6 different\n +4 the\n +2 cat\n`},
	{"wordcount.py", []string{"TEXTS", "--reducers", "1"}, `^2 files, 10 words, 6 different\n +4 the\n +2 cat\n`},
	{"sweep.py", []string{"12"}, `12 trials, [1-9] diverged, the best loss is [0-9.]+e-`},
	{"pending.py", []string{"60", "7"}, `^60 inputs, 1457 steps in all, at most 7 pending\n$`},
	{"generators.py", []string{"20"}, `^the sum of 20 squares is 2470\n$`},
	{"nested.py", []string{"12", "3000"}, `^sorted 3000 numbers: True\n12 tasks deep\n$`},
}

// texts makes a corpus.
func texts(h *testkit.Home) string {
	h.Write("texts/a.txt", "The cat and the dog.\n")
	h.Write("texts/b/c.md", "the cat\nsaw THE man\n")
	h.Write("texts/d.png", "the the the")
	return filepath.Join(h.Work, "texts")
}

func given(args []string, corpus string) []string {
	var out []string
	for _, a := range args {
		if a == "TEXTS" {
			a = corpus
		}
		out = append(out, a)
	}
	return out
}

func TestOnTheirOwn(t *testing.T) {
	py, sdk := testkit.Python(t, "cloudpickle", "msgpack"), abs(t, "../../python")
	for _, e := range examples {
		t.Run(e.file, func(t *testing.T) {
			h := testkit.New(t)
			cmd := h.Program(t.Context(), py, append([]string{abs(t, e.file)}, given(e.args, texts(h))...)...)
			cmd.Env = append(cmd.Env, "PYTHONPATH="+sdk, "PYTHONDONTWRITEBYTECODE=1", "LAUNCHER="+testkit.Binary(t))
			check(t, e.says, testkit.Finish(cmd))
		})
	}
}

func TestAsJobs(t *testing.T) {
	py := testkit.Python(t, "cloudpickle", "msgpack")
	h := testkit.New(t)
	h.Write("lab.toml", "version = 1\nname = \"lab\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 2\nresources = { cpu = 1 }\n")
	h.OK("up", "lab.toml")
	defer h.OK("down", "lab")
	corpus := texts(h)
	for _, e := range examples {
		check(t, e.says, h.Run(append([]string{"run", "--cpus", "0", "--", py, abs(t, e.file)}, given(e.args, corpus)...)...))
	}
}

func check(t *testing.T, says string, r testkit.Result) {
	t.Helper()
	if r.Code != 0 || !regexp.MustCompile(says).MatchString(r.Out) {
		t.Errorf("wanted %s: %s", says, r)
	}
}

func abs(t *testing.T, path string) string {
	t.Helper()
	p, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil { // go test must know that its result depends on it
		t.Fatal(err)
	}
	return p
}
