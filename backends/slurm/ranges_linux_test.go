package slurm

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"launcher/backends"
	"launcher/internal/testkit/slurmtest"
)

// TestTimeRange has a pool whose time is a range get into holes that no job of its longest
// time fits into: before a reservation, and before a job of all nodes that waits for one.
// What sbatch --test-only says of lengths there is printed; docs/architecture.md has it.
func TestTimeRange(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{Nodes: 2, CPUs: 4})
	b := New(w.home)
	defer b.Close()
	me := strconv.Itoa(os.Getuid())
	const most = 20 * time.Minute // of each hole
	hole := func(t *testing.T, token string) {
		for _, minutes := range []string{"5", "10", "19", "30", "60", "100"} {
			began := time.Now()
			said, _ := w.Command(w.ctx(), "sbatch", "--test-only", "-N1", "--exclusive", "--time="+minutes, "--wrap=true").CombinedOutput()
			t.Logf("--test-only --time=%s in %v: %s", minutes, time.Since(began).Round(time.Millisecond), strings.TrimSpace(string(said)))
		}
		whole := func(time any) backends.Options { return backends.Options{"exclusive": true, "time": time} }
		long := w.submit(b, w.request(token+"-long", 1, whole("100m")))
		began := time.Now()
		st := w.await(b, w.submit(b, w.request(token, 1, whole([]any{"5m", "100m"}))), isRunning)
		left := time.Until(time.Unix(st.Deadline, 0))
		t.Logf("a job of 5 to 100 minutes runs after %v and has %v", time.Since(began).Round(100*time.Millisecond), left.Round(time.Second))
		if st.Deadline == 0 || left > most+time.Minute {
			t.Errorf("%v are left in a hole of %v", left, most)
		}
		if st := w.await(b, long, func(backends.Status) bool { return true }); st.State != backends.Pending {
			t.Errorf("a job of 100 minutes in it: %+v", st)
		}
	}
	t.Run("reservation", func(t *testing.T) {
		w.OK(t, "scontrol", "create", "reservation", "reservationname=maint", "starttime=now+20minutes", "duration=600", "nodes=ALL", "users="+me, "flags=maint,ignore_jobs")
		hole(t, "r")
		w.OK(t, "scontrol", "delete", "reservation", "maint")
		w.OK(t, "scancel", "-u", me)
	})
	t.Run("large job", func(t *testing.T) {
		w.OK(t, "sbatch", "-w", "n1", "--exclusive", "--time=20", "-o", "/dev/null", "--wrap=sleep 1200")
		w.OK(t, "sbatch", "-N2", "--exclusive", "--time=60", "-o", "/dev/null", "--wrap=sleep 1200")
		w.await(b, w.submit(b, w.request("x", 1, backends.Options{"exclusive": true, "time": "5m"})), isRunning) // so that backfill has seen both
		w.OK(t, "scancel", "--name=launcher-x")
		hole(t, "l")
	})
}
