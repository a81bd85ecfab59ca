package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// slurmHome is a Home whose commands talk to a Slurm of the test's own.
func slurmHome(t *testing.T, o slurmtest.Options) (*testkit.Home, *slurmtest.Cluster) {
	t.Helper()
	c := slurmtest.New(t, o)
	h := testkit.New(t)
	tmp := filepath.Dir(h.Write("tmp/x", ""))
	_ = os.Remove(filepath.Join(tmp, "x"))
	h.Env = append(append(h.Env, c.Env()...), "TMPDIR="+tmp)
	t.Cleanup(func() {
		testkit.Eventually(t, testkit.Bound, func() string { // a job is over for Slurm before all that it killed has died
			for _, p := range h.Processes() {
				if filepath.Base(p.Args[0]) == "srun" {
					return fmt.Sprint(p.Args)
				}
			}
			return ""
		})
		if left, _ := filepath.Glob(filepath.Join(tmp, "*", "*")); len(left) > 0 {
			t.Errorf("left on nodes: %q", left)
		}
	})
	return h, c
}

// nothingOfOurs: no job is left in the queue, and no node was drained.
func nothingOfOurs(t *testing.T, c *slurmtest.Cluster) {
	t.Helper()
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}

func slurmSpec(more string) string {
	return fmt.Sprintf(`version = 1
name = "queue"
[[pool]]
name = "burst"
backend = "slurm"
partition = "main"
cpus = 2
time = "10m"
resources = { cpu = 2, slot = 2 }
%s
`, more)
}

func TestSlurmCluster(t *testing.T) {
	h, c := slurmHome(t, slurmtest.Options{Nodes: 4})
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 4"))
	out := h.OK("up", "queue.toml")
	if !strings.Contains(out, "cluster queue is up: 2 nodes") {
		t.Errorf("up: %q", out)
	}
	if jobs := c.OK(t, "squeue", "-h", "-o", "%A %D %T %k"); strings.Count(jobs, "\n") != 1 || !strings.Contains(jobs, " 2 RUNNING launcher:queue:burst:") {
		t.Errorf("two nodes are not one job: %q", jobs)
	}
	out = h.OK("run", "--array", "0-19", "--", "sh", "-c", "echo ${SLURM_JOB_ID-hidden}")
	if strings.Count(out, "hidden\n") != 20 {
		t.Errorf("an array of 20: %q", out)
	}
	if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE"); strings.Count(out, "of 2") != 2 {
		t.Errorf("a gang on two nodes: %q", out)
	}
	h.OK("down", "queue")
	nothingOfOurs(t, c)
}

// batch runs a script by sbatch to its end and gives what it printed.
func batch(t *testing.T, h *testkit.Home, c *slurmtest.Cluster, options, script string) string {
	t.Helper()
	path := h.Write("job.sh", "#!/bin/bash\n#SBATCH --output=job.out --open-mode=append "+options+"\n"+script)
	_ = os.Remove(filepath.Join(h.Work, "job.out"))
	ctx, cancel := context.WithTimeout(t.Context(), 3*testkit.Bound)
	defer cancel()
	r := testkit.Finish(h.Program(ctx, "sbatch", "--wait", path))
	out := h.Read("job.out")
	if r.Code != 0 {
		t.Fatalf("sbatch: %s\n%s", r, out)
	}
	return out
}

// In a batch script of the user's own, launcher uses exactly the allocation.
func TestSlurmAllocation(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 3, CPUs: 4})
	out := batch(t, h, c, "-N 2 -n 4 --ntasks-per-node=2", `
launcher run --nodes 2 -- sh -c 'echo rank $RANK of $WORLD_SIZE ${SLURM_JOB_ID-hidden}'
export PMI_X=1
launcher run --keep-env slurm -- sh -c 'echo kept $SLURM_JOB_ID ${PMI_X-hidden}'
launcher run -- sh -c 'exit 7'
echo code $?
launcher run -- echo one & launcher run -- echo two & wait
launcher run --detach -- true; echo detach $?
squeue -h -s -j $SLURM_JOB_ID -o %i | grep -v -e batch -e extern | wc -l
`)
	for _, want := range []string{"rank 0 of 2 hidden\n", "rank 1 of 2 hidden\n", "kept 1 hidden\n", "code 7\n", "one\n", "two\n", "detach 125\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not there: %s", want, out)
		}
	}
	if !strings.HasSuffix(out, "\n0\n") {
		t.Errorf("steps are left at the end: %s", out)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Dir, "local", "*")); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}

// Nodes come when work needs them, a gang's as one job, and go back when they are idle.
func TestSlurmDemand(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 4})
	h.Write("queue.toml", slurmSpec("max = 3\nidle = \"1s\""))
	h.OK("up", "queue.toml")
	if jobs := c.OK(t, "squeue", "-h"); jobs != "" {
		t.Errorf("asked for before there is work: %q", jobs)
	}
	if out := h.OK("run", "--nodes", "3", "--", "sh", "-c", "echo rank $RANK"); strings.Count(out, "rank") != 3 {
		t.Errorf("a gang on three nodes: %q", out)
	}
	if jobs := c.OK(t, "squeue", "-h", "-t", "all", "-o", "%D"); strings.TrimSpace(jobs) != "3" {
		t.Errorf("a gang of three nodes is not one job of three: %q", jobs)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if jobs := c.OK(t, "squeue", "-h"); jobs != "" {
			return "idle nodes are kept: " + jobs
		}
		return ""
	})
	if out := h.OK("run", "--", "echo", "again"); out != "again\n" {
		t.Errorf("after they were given back: %q", out)
	}
	// A job that waits is taken back when the work that needed it is gone.
	others := strings.TrimSpace(c.OK(t, "sbatch", "--parsable", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600"))
	waiting := func() (n int) {
		for line := range strings.Lines(c.OK(t, "squeue", "-h", "-t", "PENDING", "-o", "%j")) {
			if strings.HasPrefix(line, "launcher-") {
				n++
			}
		}
		return n
	}
	job := strings.TrimSpace(h.OK("run", "--detach", "--nodes", "2", "--", "true"))
	testkit.Eventually(t, testkit.Bound, func() string {
		if why := h.OK("why", "burst"); waiting() != 1 || !strings.Contains(why, "waits: ") {
			return "it does not wait: " + why
		}
		return ""
	})
	h.OK("cancel", job)
	testkit.Eventually(t, testkit.Bound, func() string {
		if why := h.OK("why", "burst"); waiting() != 0 || !strings.Contains(why, "nothing needed it any more") {
			return "what nothing needs still waits: " + why
		}
		return ""
	})
	h.OK("down", "queue")
	if left := c.OK(t, "squeue", "-h", "-o", "%A"); strings.TrimSpace(left) != others {
		t.Errorf("left in the queue: %q", left)
	}
}

// What Slurm refuses ends `up` with Slurm's own words; what waits says for what.
func TestSlurmRefused(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	h.Write("queue.toml", strings.Replace(slurmSpec("min = 1"), `"main"`, `"nosuch"`, 1))
	h.Fails(125, []string{"Invalid partition name"}, "up", "queue.toml")
	h.OK("down", "queue")
	h.Write("queue.toml", slurmSpec("min = 3"))
	up := h.Start("up", "queue.toml")
	testkit.Eventually(t, testkit.Bound, func() string {
		if r := h.Run("why", "burst"); !strings.Contains(r.Out, "waits: the partition never gives a job so many nodes") {
			return r.String()
		}
		return ""
	})
	up.Signal(os.Interrupt) // it only watches
	if r := up.Wait(); r.Code != 130 {
		t.Errorf("up, interrupted: %s", r)
	}
	h.OK("down", "queue")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
}

// Gangs, SDK tasks and programs of Ray's in a batch script use all nodes of it.
func TestSlurmBatchWork(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, CPUs: 4})
	h.Write("prog.py", `import os, time, ray
ray.init()

@ray.remote(num_cpus=2)
def where():
    time.sleep(0.5)  # sleep: long enough that one node does not do all of them
    return os.environ["LAUNCHER_SOCKET"]

print("nodes", len(set(ray.get([where.remote() for _ in range(8)]))), len(ray.nodes()))
`)
	h.Write("rank.py", "import os\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)\n")
	py := testkit.Python(t, "msgpack", "cloudpickle", "numpy")
	out := batch(t, h, c, "-N 2 -n 2 -c 2", fmt.Sprintf(`
export PATH=%s:$PATH
launcher train -n 4 --cpus 0.5 rank.py
launcher run --as-ray -- python prog.py
`, filepath.Dir(py)))
	for _, want := range []string{"rank 0 of 4", "rank 3 of 4", "nodes 2 2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not there: %s", want, out)
		}
	}
}

// A job's end, also one that is moved while it runs, is noticed: the next job is asked for
// beforehand and waits for it, the node is drained, and work goes on in the next job.
func TestSlurmWalltime(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	h.Write("queue.toml", slurmSpec("min = 1\nmax = 1\nmax_jobs = 2"))
	h.OK("up", "queue.toml")
	c.OK(t, "scontrol", "update", "JobId=1", "EndTime="+time.Now().Add(50*time.Second).Format("2006-01-02T15:04:05"))
	awaitOut := func(want string, args ...string) {
		t.Helper()
		testkit.Eventually(t, 2*testkit.Bound, func() string {
			if out := h.OK(args...); !strings.Contains(out, want) {
				return out
			}
			return ""
		})
	}
	awaitOut("burst-0 leaves in", "why", "burst")
	testkit.Eventually(t, 2*testkit.Bound, func() string {
		if out := c.OK(t, "squeue", "-h", "-t", "all", "-o", "%A %E"); !strings.Contains(out, "2 afterany:1") {
			return out
		}
		return ""
	})
	awaitOut("its allocation ends", "why", "burst")
	awaitOut("burst-1", "nodes")
	if out := h.OK("run", "--", "echo", "on"); out != "on\n" {
		t.Errorf("on the next job's node: %q", out)
	}
	awaitOut("max_jobs = 2", "why", "burst")
	h.OK("down", "queue")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
}

// Work that Slurm takes the nodes from goes on in another job, whether it leaves when it is
// told or ends by the signal: warned by SIGUSR1, ended by SIGTERM, preempted by a job of a
// higher partition. Nothing has failed.
func TestSlurmPreempted(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Lines: []string{"PreemptType=preempt/partition_prio", "PreemptMode=CANCEL", "KillWait=20"},
		Parts: []string{"PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=CANCEL", "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF"}})
	h.Write("queue.toml", strings.Replace(slurmSpec("max = 1"), `"main"`, `"low"`, 1))
	h.OK("up", "queue.toml")
	h.Write("work.sh", `echo life $1
if [ $1 = told ]; then trap '' USR1 TERM; fi
n=$(cat n-$1 2>/dev/null || echo 0); n=$((n + 1)); echo $n > n-$1; touch began-$1-$n
while ! test -e enough; do
	if [ $1 = told ] && "$LAUNCHER" should-leave > why-$n; then exit 75; fi
	sleep 0.1
done
`)
	told := h.Start("run", "--cpus", "1", "--", "bash", "work.sh", "told")
	hit := h.Start("run", "--cpus", "1", "--", "bash", "work.sh", "hit")
	life := func(n int) {
		t.Helper()
		testkit.Eventually(t, 2*testkit.Bound, func() string {
			for _, who := range []string{"told", "hit"} {
				if _, err := os.Stat(filepath.Join(h.Work, fmt.Sprintf("began-%s-%d", who, n))); err != nil {
					return who + ": " + h.OK("why", "burst") + told.Err() + hit.Err()
				}
			}
			return ""
		})
	}
	life(1)
	job := func() string {
		return strings.TrimSpace(c.OK(t, "squeue", "-h", "-p", "low", "-t", "RUNNING", "-o", "%A"))
	}
	c.OK(t, "scancel", "-s", "USR1", job())
	life(2)
	c.OK(t, "scancel", job())
	life(3)
	c.OK(t, "sbatch", "-p", "high", "-N", "2", "-c", "2", "-J", "before-it", "-o", "/dev/null", "-t", "1", "--wrap", "sleep 3")
	life(4)
	h.Write("enough", "")
	for _, r := range []*testkit.Running{told, hit} {
		if res := r.Wait(); res.Code != 0 || strings.Count(res.Out, "life") != 4 {
			t.Errorf("%s", res)
		}
	}
	for n := range 3 {
		if why := h.Read(fmt.Sprint("why-", n+1)); why != "leave\n" {
			t.Errorf("life %d was told %q", n+1, why)
		}
	}
	h.OK("down", "queue")
}
