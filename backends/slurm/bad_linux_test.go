package slurm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/backends"
	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// id is the job of a request.
func (w *world) id(token string) string {
	return strings.TrimSpace(w.OK(w.t, "squeue", "-h", "-t", "all", "-n", "launcher-"+token, "-o", "%A"))
}

// drained are nodes that somebody has drained.
func (w *world) drained() string { return strings.TrimSpace(w.OK(w.t, "sinfo", "-h", "-R")) }

func (w *world) awaitAgents(n int) (pids []int) {
	w.t.Helper()
	testkit.Eventually(w.t, bound, func() string {
		if pids = w.agents(); len(pids) != n {
			return fmt.Sprintf("%d agents run, wanted %d", len(pids), n)
		}
		return ""
	})
	return pids
}

// What people do to a job from outside is told apart, and said in words: nothing is taken for
// lost that is not, and nothing is left of what is over.
func TestJobsFromOutside(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{CPUs: 16})
	soon := func(b *Backend) *Backend {
		b.calmLook = 2 * missedLook // no head asks here
		return b
	}
	says := func(word string) func(backends.Status) bool {
		return func(s backends.Status) bool { return strings.Contains(s.Why, word) }
	}
	t.Run("suspended", func(t *testing.T) {
		b := soon(New(w.home))
		as := w.submit(b, w.request("suspended", 1, nil))
		w.await(b, as, isRunning)
		pid := w.awaitAgents(1)[0]
		for range 2 {
			w.OK(t, "scontrol", "suspend", w.id("suspended"))
			if st := w.await(b, as, says("is suspended")); st.State != backends.Running || len(st.DeadNodes) > 0 {
				t.Errorf("suspended: %+v", st)
			}
			w.OK(t, "scontrol", "resume", w.id("suspended"))
			w.await(b, as, func(s backends.Status) bool {
				return s.State == backends.Running && !strings.Contains(s.Why, "is suspended")
			})
		}
		if now := w.awaitAgents(1)[0]; now != pid {
			t.Errorf("its agent is another process: %d, was %d", now, pid)
		}
		w.OK(t, "scontrol", "suspend", w.id("suspended"))
		if err := b.Cancel(w.ctx(), [][]byte{as[0].Handle}); err != nil {
			t.Errorf("ended while it is suspended: %v", err)
		}
		w.awaitAgents(0)
	})
	t.Run("held", func(t *testing.T) {
		b := soon(New(w.home))
		as := w.submit(b, w.request("held", 1, backends.Options{"args": []any{"--hold"}}))
		w.await(b, as, says("`scontrol release` lets it go on"))
		w.OK(t, "scontrol", "release", w.id("held"))
		w.await(b, as, isRunning)
	})
	t.Run("requeued", func(t *testing.T) {
		b := soon(New(w.home))
		as := w.submit(b, w.request("kept", 1, nil))
		w.await(b, as, isRunning)
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		defer cancel()
		if _, err := w.Run(ctx, "scontrol", "requeue", w.id("kept")); err == nil {
			t.Error("a job of ours was put back into the queue")
		}
		// A site or a user may let it all the same. Nothing of it runs twice.
		again := w.submit(b, w.request("again", 1, backends.Options{"args": []any{"--requeue"}}))
		w.await(b, again, isRunning)
		w.OK(t, "scontrol", "requeue", w.id("again"))
		if st := w.await(b, again, isOver); st.State != backends.Failed || !strings.Contains(st.Why, "put back into the queue") {
			t.Errorf("%+v", st)
		}
		testkit.Eventually(t, bound, func() string {
			_, _ = b.Status(w.ctx(), [][]byte{as[0].Handle, again[0].Handle})
			return w.OK(t, "squeue", "-h", "-n", "launcher-again")
		})
	})
	t.Run("killed", func(t *testing.T) {
		b := soon(New(w.home))
		as := w.submit(b, w.request("killed", 1, nil))
		w.await(b, as, isRunning)
		testkit.Eventually(t, bound, func() string { // its step may not have begun
			if st, err := b.Status(w.ctx(), [][]byte{as[0].Handle}); err != nil || st[0].State.Ended() {
				return ""
			}
			_, _ = w.Run(w.ctx(), "scancel", "-s", "KILL", w.id("killed")) // it may have ended just now
			return "it runs on"
		})
		if st := w.await(b, as, isOver); st.State != backends.Failed {
			t.Errorf("its agents were killed: %+v", st)
		}
	})
	t.Run("no output", func(t *testing.T) {
		b := soon(New(w.home))
		as := w.submit(b, w.request("output", 1, backends.Options{"args": []any{"--output=" + w.home + "/missing/out"}}))
		if st := w.await(b, as, isOver); st.State != backends.Failed || !strings.Contains(st.Why, "whether its nodes see") || !strings.Contains(st.Why, w.home) {
			t.Errorf("%+v", st)
		}
	})
	t.Run("refused", func(t *testing.T) {
		b := soon(New(w.home))
		for name, o := range map[string]backends.Options{"partition": {"partition": "nosuch"}, "gres": {"gres": "gpu:1"}, "reservation": {"reservation": "nosuch"},
			"constraint": {"constraint": "nosuch"}, "args": {"args": []any{"--nonsense"}}, "memory": {"memory": "100TiB"}} {
			as, err := b.Submit(w.ctx(), w.request("bad-"+name, 1, o))
			if err == nil || !strings.Contains(err.Error(), "sbatch: ") {
				t.Errorf("%s: %v, %v", name, as, err)
			}
			if _, err := os.Stat(w.home + "/clusters/lab/slurm/launcher-bad-" + name + recordExt); err == nil {
				t.Errorf("%s: its record is there", name)
			}
		}
	})
	if bad := w.drained(); bad != "" {
		t.Errorf("nodes were drained: %s", bad)
	}
}

// A controller that was stopped with a submission in hand makes its job when it goes on, after
// it has answered others: it is found, and not asked for twice.
func TestAnswersLate(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{})
	b := New(w.home)
	r := w.request("late", 1, nil)
	if err := w.Signal("slurmctld", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.ctx(), 2*time.Second)
	_, err := b.Submit(ctx, r)
	cancel()
	if err == nil {
		t.Fatal("submitted while the controller was stopped")
	}
	time.Sleep(inFlight) // sleep: so long ago that a controller that answers would have it
	ctx, cancel = context.WithTimeout(w.ctx(), time.Second)
	if _, err := b.Find(ctx, "lab", []string{"late"}); err == nil {
		t.Error("found out without the controller")
	}
	cancel()
	if err := w.Signal("slurmctld", syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var as []backends.Alloc
	testkit.Eventually(t, bound, func() string {
		if as, err = b.Submit(w.ctx(), r); err != nil {
			return err.Error()
		}
		return ""
	})
	defer b.Cancel(w.ctx(), [][]byte{as[0].Handle})
	w.await(b, as, isRunning)
	if n := strings.Count(w.OK(t, "squeue", "-h", "-t", "all"), "\n"); n != 1 {
		t.Errorf("%d jobs were made of one submission", n)
	}
}

// sbatch that is refused for now asks again, and may be let in before it is ended: that job
// is the one that was asked for.
func TestLetInAtLast(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{})
	real, err := exec.LookPath("sbatch")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\n" + real + " \"$@\" >/dev/null\necho 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying' >&2\nexec sleep 600\n"
	if err := os.WriteFile(filepath.Join(dir, "sbatch"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	b := New(w.home)
	as := w.submit(b, w.request("late", 1, nil))
	defer b.Cancel(w.ctx(), [][]byte{as[0].Handle})
	w.await(b, as, isRunning)
	if n := strings.Count(w.OK(t, "squeue", "-h", "-t", "all"), "\n"); n != 1 {
		t.Errorf("%d jobs were made of one submission", n)
	}
}

// A job that is taken back goes, unless it has begun, also when it begins just then.
func TestUnask(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{Nodes: 1})
	b := New(w.home)
	begun := w.submit(b, w.request("begun", 1, backends.Options{"exclusive": true}))
	w.await(b, begun, isRunning)
	waits := w.submit(b, w.request("waits", 1, nil))
	if err := b.Unask(w.ctx(), [][]byte{begun[0].Handle, waits[0].Handle}); err != nil {
		t.Fatal(err)
	}
	if st := w.await(b, waits, isOver); st.State != backends.Done || st.Why != "ended as asked" {
		t.Errorf("one that waited: %+v", st)
	}
	if err := b.cancelJobs(w.ctx(), []string{w.id("begun")}, onlyWaiting); err != nil { // it has begun since the queue was looked at
		t.Fatal(err)
	}
	if got := strings.TrimSpace(w.OK(t, "squeue", "-h", "-n", "launcher-begun", "-o", "%T")); got != "RUNNING" {
		t.Errorf("one that had begun is %q", got)
	}
	b.soon()
	if st := w.await(b, begun, func(backends.Status) bool { return true }); st.State != backends.Running {
		t.Errorf("one that had begun: %+v", st)
	}
}
