package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// A controller that is stopped while a command is in flight is waited for, and said to be
// away: `up` goes on when it is back and has one job, `run` uses the nodes that there are,
// `down` ends with a code that says so, and the next one finishes. A job that cannot say that it
// ended must not have its node drained by the test's short patience.
func TestSlurmControllerStopped(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Lines: []string{"UnkillableStepTimeout=300", "MessageTimeout=5"}})
	stop, goOn := func() { tellController(t, c, syscall.SIGSTOP) }, func() { tellController(t, c, syscall.SIGCONT) }
	t.Cleanup(func() { _ = c.Signal("slurmctld", syscall.SIGCONT) })
	h.Write("queue.toml", slurmSpec("min = 1\nmax = 2"))
	stop()
	up := h.Start("up", "queue.toml")
	awaitWhy(t, h, "not known yet", "not answer", "sbatch: ", "squeue: ", "cannot be asked")
	goOn()
	if r := up.Within(3 * testkit.Bound); r.Code != 0 {
		t.Fatalf("up, with the controller stopped for a while: %s", r)
	}
	if jobs := c.OK(t, "squeue", "-h", "-t", "all", "-o", "%A %T"); jobs != "1 RUNNING\n" {
		t.Errorf("one request became %q", jobs)
	}
	stop()
	if out := h.OK("run", "--array", "0-9", "--", "echo", "here"); strings.Count(out, "here") != 10 {
		t.Errorf("on nodes that are there: %q", out)
	}
	gang := h.Start("run", "--nodes", "2", "--", "echo", "both")
	awaitWhy(t, h, "not known yet", "not answer", "sbatch: ", "squeue: ", "cannot be asked")
	goOn()
	if r := gang.Within(3 * testkit.Bound); r.Code != 0 || strings.Count(r.Out, "both") != 2 {
		t.Errorf("a gang that needs another node: %s", r)
	}
	stop()
	down := h.Start("down", "queue").Within(3 * testkit.Bound)
	if down.Code != 124 || !strings.Contains(down.Err, "nothing confirmed the end of burst-0") || !strings.Contains(down.Err, "launcher down queue") || !strings.Contains(down.Err, "(Slurm cannot be asked: ") {
		t.Errorf("down with the controller stopped: %s", down)
	}
	goOn()
	testkit.Eventually(t, 3*testkit.Bound, func() string { // what ended in the meantime Slurm hears late
		if r := h.Start("down", "queue").Within(3 * testkit.Bound); r.Code != 0 {
			return r.String()
		}
		return c.OK(t, "squeue", "-h")
	})
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}

func tellController(t *testing.T, c *slurmtest.Cluster, sig syscall.Signal) {
	t.Helper()
	if err := c.Signal("slurmctld", sig); err != nil {
		t.Fatal(err)
	}
}

// awaitWhy waits until `why` says one of some words of the pool.
func awaitWhy(t *testing.T, h *testkit.Home, words ...string) {
	t.Helper()
	testkit.Eventually(t, 2*testkit.Bound, func() string {
		r := h.Run("why", "burst")
		for _, w := range words {
			if strings.Contains(r.Out, w) {
				return ""
			}
		}
		return r.String()
	})
}

// A job that Slurm suspends is a node that does not answer, and `why` says which. What ran
// there runs again in another job, once; the suspended one is ended.
func TestSlurmSuspended(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	h.Write("queue.toml", slurmSpec("max = 1"))
	h.OK("up", "queue.toml")
	run := h.Start("run", "--", "sh", "-c", "echo $LAUNCHER_ATTEMPT >> lives; until test -e enough; do sleep 0.1; done; echo result $LAUNCHER_ATTEMPT")
	lives := func(n int) {
		t.Helper()
		testkit.Eventually(t, 3*testkit.Bound, func() string {
			if _, err := os.Stat(h.Work + "/lives"); err != nil || strings.Count(h.Read("lives"), "\n") < n {
				return h.OK("why", "burst")
			}
			return ""
		})
	}
	lives(1)
	c.OK(t, "scontrol", "suspend", "1")
	awaitWhy(t, h, "Slurm job 1 is suspended")
	lives(2)
	h.Write("enough", "")
	if r := run.Within(3 * testkit.Bound); r.Code != 0 || r.Out != "result 2\n" {
		t.Errorf("run: %s", r)
	}
	h.OK("down", "queue")
	// The suspended one was killed where it stood: what it left a later node of this user removes.
	left, _ := filepath.Glob(filepath.Join(h.Work, "tmp", "*", "*-burst-0.1"))
	for _, dir := range left {
		_ = os.RemoveAll(dir)
	}
	if jobs := c.OK(t, "squeue", "-h"); jobs != "" {
		t.Errorf("left in the queue: %q", jobs)
	}
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}

// A site that takes no more jobs is asked again, less and less often; what it says is said,
// and the work goes on when there is room.
func TestSlurmTakesNoMore(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Lines: []string{"MaxJobCount=2"}})
	h.Write("queue.toml", slurmSpec("max = 1"))
	h.OK("up", "queue.toml")
	c.OK(t, "sbatch", "-o", "/dev/null", "--hold", "--wrap", "true")
	before := c.Calls(t)["REQUEST_SUBMIT_BATCH_JOB"]
	run := h.Start("run", "--", "echo", "through")
	awaitWhy(t, h, "sbatch: Slurm temporarily unable to accept job")
	time.Sleep(10 * time.Second) // sleep: calls are counted over some seconds
	// After 1, 2, 4, 8, ... s: by itself sbatch asks as often in each of its lives.
	if n := c.Calls(t)["REQUEST_SUBMIT_BATCH_JOB"] - before; n < 2 || n > 7 {
		t.Errorf("asked %d times in 10 s", n)
	}
	for _, words := range [][]string{{"status"}, {"why", "burst"}, {"pools"}} {
		if out := h.OK(words...); !strings.Contains(out, "Slurm temporarily unable to accept job") {
			t.Errorf("%q: %s", words, out)
		}
	}
	conf, err := os.ReadFile(c.Conf)
	if err == nil {
		err = os.WriteFile(c.Conf, bytes.Replace(conf, []byte("MaxJobCount=2\n"), []byte("MaxJobCount=100\n"), 1), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.End("slurmctld")
	if err := c.Restart("slurmctld"); err != nil {
		t.Fatal(err)
	}
	if r := run.Wait(); r.Out != "through\n" {
		t.Errorf("when there is room: %s", r)
	}
	h.OK("down", "queue")
	if jobs := c.OK(t, "squeue", "-h", "-t", "all", "-n", "wrap", "-o", "%T"); strings.TrimSpace(jobs) != "PENDING" {
		t.Errorf("the job of somebody: %q", jobs)
	}
	if n := strings.Count(c.OK(t, "squeue", "-h", "-t", "all", "-o", "%j"), "launcher-"); n != 1 {
		t.Errorf("%d jobs were made", n)
	}
}
