package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// descent is a training by gradient descent over all ranks. Each step is committed with its
// checkpoint, and written in a ledger that launcher does not know of.
const descent = `
import hashlib, os, shutil, sys, tempfile, time
import numpy as np
import launcher

steps, pause, out, ledger = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
group = launcher.collective.init()
rng = np.random.default_rng(7)
x = rng.normal(size=(64, 8))
y = x @ rng.normal(size=8) + rng.normal(size=64)
mine = slice(64 * group.rank // group.size, 64 * (group.rank + 1) // group.size)
w, step = np.zeros(8), 0
start = launcher.checkpoint()
if start is not None:
    w, step = np.load(os.path.join(start, "w.npy")), launcher.checkpoint_step()
while step < steps:
    g = x[mine].T @ (x[mine] @ w - y[mine])
    group.all_reduce(g)
    w, step = w - 1e-3 * g, step + 1
    with tempfile.TemporaryDirectory() as d:
        np.save(os.path.join(d, "w.npy"), w)
        told = launcher.report(step=step, checkpoint=d)
    if group.rank == 0:
        print("step", step, flush=True)
        with open(ledger, "a") as f:
            f.write(f"{step} {hashlib.sha256(w.tobytes()).hexdigest()}\n")
    leave = np.array([float(bool(told))])
    group.all_reduce(leave)  # all leave after the same step
    if leave[0]:
        sys.exit(launcher.LEFT)
    time.sleep(pause)
if group.rank == 0:
    np.save(out, w)
`

// trial is one of a sweep; what it has counted goes with it.
const trial = `
import os, sys, tempfile, time
import launcher

x, pause = launcher.params()["x"], float(sys.argv[1])
n, start = 0, launcher.checkpoint()
if start is not None:
    n = int(open(os.path.join(start, "n")).read())
while n < 20:
    n += 1
    with tempfile.TemporaryDirectory() as d:
        open(os.path.join(d, "n"), "w").write(str(n))
        told = launcher.report(step=n, loss=x + 1.0 / n, checkpoint=d)
    if told and n < 20:
        sys.exit(launcher.LEFT)
    time.sleep(pause)
`

// A training whose work takes longer than its allocations last goes on from one to the next,
// beside a sweep: the same weights as undisturbed, every step committed once, a log without a
// gap, no trial lost; the head is in those allocations, too. LAUNCHER_TEST_TRAIN is how many seconds of work it has, 240.
func TestSlurmTraining(t *testing.T) {
	slurmtest.Whole(t)
	work := 240
	if s := os.Getenv("LAUNCHER_TEST_TRAIN"); s != "" {
		var err error
		if work, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	const pause = 0.4
	steps := int(float64(work) / pause)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 4})
	spec := strings.Replace(slurmSpec("min = 2\nmax = 2\npython = \""+testkit.Python(t, "numpy")+"\"\nenv = { OMP_NUM_THREADS = \"1\" }"), `time = "10m"`, `time = "1m"`, 1)
	spec = strings.Replace(spec, "[[pool]]", "[head]\nwhere = \"pool:burst\"\n[[pool]]", 1)
	h.Write("queue.toml", strings.Replace(spec, "cpu = 2, slot = 2", "cpu = 4", 1))
	h.Write("train.py", descent)
	h.Write("trial.py", trial)
	h.Write("sweep.toml", fmt.Sprintf(`version = 1
name = "beside"
command = ["python", "trial.py", "%g"]
[resources]
cpu = 1
[sweep]
method = "grid"
metric = { name = "loss", goal = "minimize" }
concurrent = 4
[sweep.parameters]
x = { values = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] }
`, float64(work)/4/20))
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(work)*time.Second*5/2+2*time.Minute)
	defer cancel()
	h.OK("up", "queue.toml")
	train := func(pause float64, weights, ledger string) (lines []string) {
		t.Helper()
		r := testkit.Finish(h.Cmd(ctx, "train", "-n", "2", "--per-node", "1", "--max-restarts", "0", "train.py", strconv.Itoa(steps), fmt.Sprint(pause),
			filepath.Join(h.Work, weights), filepath.Join(h.Work, ledger)))
		if r.Code != 0 {
			t.Fatalf("%s", r)
		}
		k := 0
		for line := range strings.Lines(r.Out) {
			if _, s, ok := strings.Cut(line, "step "); ok {
				if k++; strings.TrimSpace(s) != strconv.Itoa(k) {
					t.Fatalf("the log has step %q where step %d was to be; it was made %d times\n%s", s, k, strings.Count("\n"+h.Read(ledger), "\n"+strings.TrimSpace(s)+" "), r.Err)
				}
			}
		}
		if k != steps {
			t.Errorf("the log ends after step %d of %d", k, steps)
		}
		return strings.Split(strings.TrimSpace(h.Read(ledger)), "\n")
	}
	h.OK("sweep", "--detach", "sweep.toml")
	moved := train(pause, "moved.npy", "moved")
	ended := 0
	records, _ := filepath.Glob(filepath.Join(h.Dir, "clusters/queue/slurm/*.json"))
	for _, f := range records {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(`"end":`)) {
			ended++
		}
	}
	if want := work / 75; ended < want { // an allocation of a minute gives about three quarters of it
		t.Errorf("%d allocations ended under the training, wanted %d", ended, want)
	}
	if node, moves := seatOf(t, h); moves < float64(1+work/75) { // in, and on with each
		t.Errorf("the head is on %q after %g moves", node, moves)
	}
	if r := testkit.Finish(h.Cmd(ctx, "wait", "1")); r.Code != 0 {
		t.Errorf("%s", r)
	}
	m := lastJSON(t, h.OK("sweep", "show", "--json", "1"))
	trials, _ := m["trials"].([]any)
	for _, k := range trials {
		if tr := k.(map[string]any); tr["state"] != "done" {
			t.Errorf("a trial ended as %v", tr)
		}
	}
	if len(trials) != 12 {
		t.Errorf("%d trials of 12: %v", len(trials), m)
	}
	still := train(0, "still.npy", "still")
	if got, want := h.Read("moved.npy"), h.Read("still.npy"); got != want {
		t.Error("the weights are other ones than undisturbed")
	}
	for i := range steps {
		if i >= len(moved) || i >= len(still) || moved[i] != still[i] {
			t.Errorf("at step %d the ledger says %q, undisturbed %q", i+1, moved[min(i, len(moved)-1)], still[min(i, len(still)-1)])
			break
		}
	}
	if len(moved) != steps {
		t.Errorf("%d entries for %d steps", len(moved), steps)
	}
	h.OK("down", "queue")
	nothingOfOurs(t, c)
}
