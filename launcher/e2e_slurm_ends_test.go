package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// Whatever runs in a job of Slurm's can ask when it must have left, and hears of it when
// somebody gives the job another end: commands, and tasks of programs, in the time that they
// began with. What starts later finds the new time in its environment.
func TestSlurmEnds(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 1})
	h.Write("queue.toml", slurmSpec("min = 1\nmax = 1\nmax_jobs = 1"))
	h.OK("up", "queue.toml")
	h.Write("watch.sh", `echo '{"deadline": '$LAUNCHER_DEADLINE'}' > began
until test -e enough; do "$LAUNCHER" should-leave --json > now.new; mv now.new now; sleep 0.2; done
`)
	h.Write("prog.py", `import json, os, time
import launcher as ray
ray.init()

def put(name, t):
    with open(name + ".new", "w") as f:
        json.dump({"deadline": t}, f)
    os.rename(name + ".new", name)

@ray.remote(num_cpus=0)
def watch(where):
    os.chdir(where)
    while not os.path.exists("enough"):
        put("task", ray.deadline() or 0)
        put("task-leave", ray.should_leave().deadline or 0)
        time.sleep(0.2)  # sleep: what changes is looked at again

ray.get(watch.remote(os.getcwd()))
`)
	py := testkit.Python(t, "msgpack", "cloudpickle")
	runs := []*testkit.Running{h.Start("run", "--cpus", "0.5", "--", "sh", "watch.sh"), h.Start("run", "--cpus", "0.5", "--", py, "prog.py")}
	// A node is told some seconds less than the job has.
	within := func(end time.Time, names ...string) {
		t.Helper()
		testkit.Eventually(t, 2*testkit.Bound, func() string {
			for _, name := range names {
				b, err := os.ReadFile(filepath.Join(h.Work, name))
				var x struct{ Deadline float64 }
				if err == nil {
					err = json.Unmarshal(b, &x)
				}
				if left := end.Sub(time.Unix(int64(x.Deadline), 0)); err != nil || left < -5*time.Second || left > 45*time.Second {
					return fmt.Sprintf("%s says %s (%v), the end is %d: %s%s", name, b, err, end.Unix(), runs[0].Err(), runs[1].Err())
				}
			}
			return ""
		})
	}
	ends := func() time.Time {
		t.Helper()
		end, err := time.ParseInLocation("2006-01-02T15:04:05", strings.TrimSpace(c.OK(t, "squeue", "-h", "-j", "1", "-o", "%e")), time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	within(ends(), "began", "now", "task", "task-leave")
	for _, minutes := range []string{"30", "6"} {
		c.OK(t, "scontrol", "update", "JobId=1", "TimeLimit="+minutes)
		within(ends(), "now", "task", "task-leave")
		h.Write("began", "")
		h.OK("run", "--cpus", "0.5", "--", "sh", "-c", `echo '{"deadline": '$LAUNCHER_DEADLINE'}' > began`)
		within(ends(), "began")
	}
	h.Write("enough", "")
	for _, r := range runs {
		if res := r.Wait(); res.Code != 0 {
			t.Errorf("%s", res)
		}
	}
	h.OK("down", "queue")
}
