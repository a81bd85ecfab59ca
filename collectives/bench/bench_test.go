//go:build linux

package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const rankEnv = "COLLECTIVES_BENCH_RANK"

func TestMain(m *testing.M) {
	if os.Getenv(rankEnv) != "" {
		if err := Rank(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestRun: every figure is there, checked and plausible. How fast it is, is not for a
// test on a busy machine; BENCH=4096,65536 (bytes) prints it,
// BENCH_RANKS=4 with so many ranks.
func TestRun(t *testing.T) {
	t.Setenv(rankEnv, "1")
	o := Options{Rank: []string{os.Args[0]}, Ranks: 2, Sizes: []int{4 << 10, 300 << 10}, Samples: 1, Log: t.Logf}
	if n, err := strconv.Atoi(os.Getenv("BENCH_RANKS")); err == nil {
		o.Ranks = n
	}
	if sizes := os.Getenv("BENCH"); sizes != "" {
		o.Sizes, o.Samples = nil, 5
		for s := range strings.SplitSeq(sizes, ",") {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			o.Sizes = append(o.Sizes, n)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, py := range []string{os.Getenv("LAUNCHER_TEST_PYTHON"), filepath.Join(root, ".venv/bin/python"), "python3"} {
		if py != "" && exec.Command(py, "-c", "import numpy").Run() == nil {
			o.Python, o.PythonPath = py, filepath.Join(root, "python")
			break
		}
	}
	rows, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("BENCH") == "" {
		want := 4 * len(o.Sizes)
		if o.Python != "" {
			want += 2 * len(o.Sizes)
		}
		if len(rows) != want {
			t.Errorf("%d rows, want %d", len(rows), want)
		}
	}
	for _, r := range rows {
		if r.Wrong != "" || r.Time <= 0 || r.Rate <= 0 || (r.What == allReduce) != (r.Limit > 0) {
			t.Errorf("%+v", r)
		}
	}
}
