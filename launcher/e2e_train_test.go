package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

func TestTrain(t *testing.T) {
	h := lab(t)
	t.Run("ranks", func(t *testing.T) {
		h.Write("ranks.sh", `echo "of $WORLD_SIZE local $LOCAL_RANK at $MASTER_ADDR:$MASTER_PORT"; echo err $RANK >&2`)
		r := h.Run("train", "-n", "4", "--per-node", "2", "sh", "ranks.sh")
		if r.Code != 0 {
			t.Fatalf("%s", r)
		}
		for rank := range 4 {
			if !regexp.MustCompile(fmt.Sprintf(`(?m)^\[%d\] of 4 local %d at [^:]+:\d+$`, rank, rank%2)).MatchString(r.Out) {
				t.Errorf("rank %d is missing: %s", rank, r)
			}
			if !strings.Contains(r.Err, fmt.Sprintf("[%d] err %d\n", rank, rank)) {
				t.Errorf("rank %d's errors are missing: %s", rank, r)
			}
		}
	})
	t.Run("restart from the checkpoint", func(t *testing.T) {
		h.Write("ckpt.sh", `set -e
in=$("$LAUNCHER" checkpoint || true)
if [ -n "$in" ]; then
	echo "go on from $(cat "$in"/rank-$RANK/state 2>/dev/null || cat "$in"/state) restart $TORCHELASTIC_RESTART_COUNT"
	exit 0
fi
mkdir -p ck-$RANK && echo "step 5 of $RANK" > ck-$RANK/state
"$LAUNCHER" report step=5 loss=0.5 --checkpoint ck-$RANK
echo reported
: > ck-$RANK/told
if [ $RANK = 1 ]; then
	until [ -e ck-0/told ]; do sleep 0.05; done
	exit 3
fi
exec sleep 600
`)
		r := h.Run("train", "-n", "2", "sh", "ckpt.sh")
		if r.Code != 0 {
			t.Fatalf("%s", r)
		}
		for rank := range 2 {
			if want := fmt.Sprintf("[%d] go on from step 5 of %d restart 1\n", rank, rank); !strings.Contains(r.Out, want) {
				t.Errorf("%q is missing: %s", want, r)
			}
		}
	})
	t.Run("the head is killed between two reports of a step", func(t *testing.T) {
		h.Write("kept.sh", `set -e
in=$("$LAUNCHER" checkpoint || true)
if [ -n "$in" ]; then
	echo "go on from $(cat "$in"/rank-$RANK/state)"
	exit 0
fi
mkdir -p k-$RANK && echo "step 5 of $RANK" > k-$RANK/state
if [ $RANK = 1 ]; then
	until [ -e killed ]; do sleep 0.05; done
fi
"$LAUNCHER" report step=5 --checkpoint k-$RANK
: > told-$RANK
test $RANK = 0 || exit 3
exec sleep 600
`)
		r := h.Start("train", "-n", "2", "--per-node", "1", "--max-restarts", "1", "sh", "kept.sh")
		testkit.Eventually(t, testkit.Bound, func() string {
			if _, err := os.Stat(filepath.Join(h.Work, "told-0")); err != nil {
				return err.Error()
			}
			return ""
		})
		kill(t, h, "head")
		h.Write("killed", "")
		res := r.Wait()
		for rank := range 2 {
			if want := fmt.Sprintf("[%d] go on from step 5 of %d\n", rank, rank); res.Code != 0 || !strings.Contains(res.Out, want) {
				t.Errorf("%q is missing: %s", want, res)
			}
		}
	})
	t.Run("restarts run out", func(t *testing.T) {
		r := h.Run("train", "-n", "2", "--max-restarts", "1", "sh", "-c", "echo try $LAUNCHER_ATTEMPT; test $RANK = 0 || exit 6; exec sleep 600")
		if r.Code != 6 || strings.Count(r.Out, "[1] try") != 2 || !strings.Contains(r.Err, "rank 1") {
			t.Errorf("%s", r)
		}
	})
	t.Run("a rank is killed", func(t *testing.T) {
		r := h.Run("train", "-n", "3", "sh", "-c", "test $LAUNCHER_ATTEMPT = 2 && exit 0; test $RANK = 2 && kill -9 $$; exec sleep 600")
		if r.Code != 0 {
			t.Errorf("%s", r)
		}
	})
}

const sweepFile = `version = 1
name = "tune"
command = ["sh", "-c", '''
x=$("$LAUNCHER" param x)
for s in 1 2 3 4 5 6 7 8 9; do
	test "$("$LAUNCHER" report loss=$x step=$s)" = go || { echo left at $s; exit 75; }
done
''']
[sweep]
method = "grid"
metric = { name = "loss", goal = "minimize" }
early_terminate = { type = "asha", min_iter = 1, max_iter = 9, eta = 3 }
[sweep.parameters]
x = { values = [1, 2, 3, 4, 5, 6, 7, 8, 9] }
`

func TestSweep(t *testing.T) {
	h := lab(t)
	h.Write("sweep.toml", sweepFile)
	r := h.Run("sweep", "sweep.toml")
	if r.Code != 0 || !strings.Contains(r.Out, "best: trial 0  loss=1  x=1\n") {
		t.Fatalf("%s", r)
	}
	m := lastJSON(t, h.OK("sweep", "show", "--json", "1"))
	trials := m["trials"].([]any)
	if len(trials) != 9 {
		t.Errorf("%d trials", len(trials))
	}
	pruned := 0
	for _, k := range trials {
		if k.(map[string]any)["pruned"] == true {
			pruned++
		}
	}
	if units := m["units"].(float64); pruned < 2 || units >= 81 {
		t.Errorf("ASHA stopped %d trials and spent %v steps", pruned, units)
	}
	if out := h.OK("sweep", "show", "1"); !strings.Contains(out, "BEST loss") || !strings.Contains(out, "x=9") {
		t.Errorf("%s", out)
	}
	h.Write("typo.toml", strings.Replace(sweepFile, `name = "loss"`, `name = "lose"`, 1))
	if r := h.Run("sweep", "typo.toml"); r.Code != 0 || !strings.Contains(r.Err, "no trial reported the metric \"lose\"\n") {
		t.Errorf("a metric that nobody reports: %s", r)
	}
	h.OK("down", "lab")
	if out := h.OK("sweep", "show", "1"); !strings.Contains(out, "pruned") {
		t.Errorf("the record's table: %s", out)
	}
	h.OK("up", "lab.toml")
}

// TestInside holds the commands for programs in a run.
func TestInside(t *testing.T) {
	h := lab(t)
	for _, c := range []struct {
		script string
		code   int
		out    string
	}{
		{`"$LAUNCHER" report loss=0.5 step=1`, 0, "go\n"},
		{`"$LAUNCHER" report --json loss=0.5`, 0, `{"deadline":0,"leave":false,"reason":"","version":1}` + "\n"},
		{`"$LAUNCHER" should-leave`, 1, "go\n"},
		{`"$LAUNCHER" param`, 0, "{}\n"},
		{`"$LAUNCHER" param lr 2>&1`, 125, "error: there is no parameter \"lr\"\nhint: only the trials of a sweep have parameters\n"},
		{`"$LAUNCHER" checkpoint`, 1, ""},
		{`"$LAUNCHER" report loss=nan gain=-inf step=2`, 0, "go\n"},
		{`"$LAUNCHER" report loss=abc 2>&1`, 125, "error: report loss=abc: not a number\n"},
		{`"$LAUNCHER" report step=1 --checkpoint /nosuch 2>&1`, 125, "error: --checkpoint /nosuch is not a directory\n"},
		// Its own cluster, through its agent, without the state directory.
		{`LAUNCHER_HOME=/nowhere "$LAUNCHER" run -- echo nested`, 0, "nested\n"},
	} {
		if r := h.Run("run", "--", "sh", "-c", c.script); r.Code != c.code || r.Out != c.out {
			t.Errorf("%s: %s", c.script, r)
		}
	}
}
