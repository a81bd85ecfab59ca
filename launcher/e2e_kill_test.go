package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// ledger runs an array of n tasks, each of which notes its start and its end in one file,
// and calls disturb while it runs. Every index must have started once and ended once.
func ledger(t *testing.T, h *testkit.Home, n int, disturb func(progress func() int)) {
	t.Helper()
	name := "ledger"
	_ = os.Remove(filepath.Join(h.Work, name))
	// One write of a short line with O_APPEND is atomic: the ledger itself loses nothing.
	script := fmt.Sprintf(`echo "start $LAUNCHER_TASK_INDEX $LAUNCHER_ATTEMPT" >> %s; sleep 0.01; echo "end $LAUNCHER_TASK_INDEX $LAUNCHER_ATTEMPT" >> %s; echo task $LAUNCHER_TASK_INDEX`, name, name)
	r := h.Start("run", "--cpus", "1", "--array", fmt.Sprintf("0-%d", n-1), "--", "sh", "-c", script)
	progress := func() int { return strings.Count(h.Read(name), "end ") }
	disturb(progress)
	res := r.Wait()
	if res.Code != 0 {
		t.Fatalf("the array: %s", testkit.Result{Out: fmt.Sprintf("%d bytes", len(res.Out)), Err: res.Err, Code: res.Code})
	}
	starts, ends := map[string]int{}, map[string]int{}
	for l := range strings.Lines(h.Read(name)) {
		f := strings.Fields(l)
		if len(f) != 3 {
			t.Errorf("a torn line: %q", l)
			continue
		}
		if f[0] == "start" {
			starts[f[1]]++
		} else {
			ends[f[1]]++
		}
	}
	out := map[string]int{}
	for l := range strings.Lines(res.Out) {
		out[strings.TrimSpace(strings.TrimPrefix(l, "task "))]++
	}
	for i := range n {
		k := fmt.Sprint(i)
		if starts[k] != 1 || ends[k] != 1 {
			t.Errorf("index %d: %d starts, %d ends", i, starts[k], ends[k])
		}
		if out[k] != 1 {
			t.Errorf("index %d: its output came %d times", i, out[k])
		}
	}
}

// waitFor waits until the array has got so far.
func waitFor(t *testing.T, progress func() int, n int) {
	t.Helper()
	testkit.Eventually(t, testkit.Bound, func() string {
		if k := progress(); k < n {
			return fmt.Sprintf("%d of %d tasks", k, n)
		}
		return ""
	})
}

func kill(t *testing.T, h *testkit.Home, kind string) {
	t.Helper()
	var pids []int
	testkit.Eventually(t, testkit.Bound, func() string { // the last one may have been killed a moment ago
		if pids = h.PIDs(kind); len(pids) == 0 {
			return "no " + kind + " to kill"
		}
		return ""
	})
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestKillInArray(t *testing.T) {
	h := lab(t)
	n := 1000
	t.Run("head", func(t *testing.T) {
		ledger(t, h, n, func(progress func() int) {
			waitFor(t, progress, n/3)
			kill(t, h, "head")
		})
	})
	t.Run("agent", func(t *testing.T) {
		ledger(t, h, n, func(progress func() int) {
			waitFor(t, progress, n/3)
			kill(t, h, "agent")
		})
	})
	t.Run("both, again and again", func(t *testing.T) {
		ledger(t, h, n, func(progress func() int) {
			for k := 1; k <= 4; k++ {
				waitFor(t, progress, k*n/6)
				kill(t, h, "agent")
				kill(t, h, "head")
			}
		})
	})
}

// TestKillNode: with a node and everything below it dead, its tasks are run again
// elsewhere, and none is lost. Of the output a lost node may lose its last two seconds,
// so the tasks' own ledger says what was done.
func TestKillNode(t *testing.T) {
	h := lab(t)
	const n = 200
	script := "until [ $LAUNCHER_TASK_INDEX -lt %d -o -e killed ]; do sleep 0.05; done; sleep 0.02; echo done $LAUNCHER_TASK_INDEX; echo end $LAUNCHER_TASK_INDEX >> ledger"
	r := h.Start("run", "--array", fmt.Sprintf("0-%d", n-1), "--", "sh", "-c", fmt.Sprintf(script, n/2))
	waitFor(t, func() int { return strings.Count(h.Read("ledger"), "end ") }, n/4)
	kill(t, h, "supervise")
	h.Write("killed", "")
	res := r.Wait()
	seen := map[string]bool{}
	for l := range strings.Lines(h.Read("ledger")) {
		seen[strings.TrimSpace(l)] = true
	}
	if res.Code != 0 || len(seen) != n {
		t.Errorf("%d of %d tasks came to their end: exit code %d\n%s", len(seen), n, res.Code, res.Err)
	}
	// The second half ran after the loss.
	if got := strings.Count(res.Out, "done "); got < n/2 {
		t.Errorf("the output of %d tasks of %d came", got, n)
	}
}

// TestDownInterrupted: a head that is killed while it ends the cluster goes on with that
// when it is back, down waits for it, and the cluster can be brought up again at once.
func TestDownInterrupted(t *testing.T) {
	h := lab(t)
	stubborn := func() {
		t.Helper()
		h.Write("up", "")
		h.OK("run", "--detach", "--", "sh", "-c", "trap '' TERM; echo x >> up; while :; do sleep 0.05; done")
		testkit.Eventually(t, testkit.Bound, func() string {
			if h.Read("up") == "" {
				return "the task has not started"
			}
			return ""
		})
	}
	stubborn()
	r := h.Start("down", "--grace", "4s", "lab")
	time.Sleep(200 * time.Millisecond) // sleep: into the grace of the task; anywhere else is as good
	for _, pid := range h.PIDs("head") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if res := r.Wait(); res.Code != 0 {
		t.Errorf("down: %s", res)
	}
	if left := h.Leaks(); len(left) > 0 {
		t.Errorf("left after down:\n%s", strings.Join(left, "\n"))
	}
	if out := h.OK("up", "lab.toml"); !strings.Contains(out, "2 nodes") {
		t.Errorf("up: %q", out)
	}
	// Everything dies in the middle: the next head has a down to finish, then comes up.
	stubborn()
	r = h.Start("down", "--grace", "30s", "lab")
	time.Sleep(200 * time.Millisecond) // sleep: as above
	r.Signal(syscall.SIGKILL)
	_ = r.Wait()
	for _, p := range h.Processes() {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	if out := h.OK("up", "lab.toml"); !strings.Contains(out, "2 nodes") {
		t.Errorf("up after a down that was cut off: %q", out)
	}
	if out := h.OK("run", "--", "echo", "back"); out != "back\n" {
		t.Errorf("%q", out)
	}
}
