package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// GPUs that Slurm grants are offered where no driver shows any, each to one task at a time,
// and nodes of one job that are not alike have each what was granted there.
func TestSlurmGres(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Sizes: []int{1, 2}, GPUs: 3})
	spec := strings.NewReplacer("cpus = 2\n", "", "resources = { cpu = 2, slot = 2 }\n", "").Replace(slurmSpec(`gres = "gpu:2"` + "\nexclusive = true\nmin = 2\nmax = 2"))
	h.Write("queue.toml", spec)
	h.OK("up", "queue.toml")
	if jobs := c.OK(t, "squeue", "-h", "-o", "%D %C"); strings.TrimSpace(jobs) != "2 3" {
		t.Errorf("one job of two nodes and three cores: %q", jobs)
	}
	nodes := h.OK("nodes")
	if !strings.Contains(nodes, "0/1 ") || !strings.Contains(nodes, "0/2 ") || strings.Count(nodes, " 0/2 ") != 3 {
		t.Errorf("cores 1 and 2, GPUs 2 and 2: %s", nodes)
	}
	// All four at once, or they wait for ever.
	all := `echo "$LAUNCHER_NODE ${ROCR_VISIBLE_DEVICES-none} $CUDA_VISIBLE_DEVICES"; touch %[1]s-$LAUNCHER_TASK_INDEX; until [ $(ls %[1]s-* | wc -l) = 4 ]; do sleep 0.05; done`
	got := strings.Fields(strings.ReplaceAll(strings.TrimSpace(h.OK("run", "--array", "0-3", "--cpus", "0.1", "--gpus", "1", "--", "sh", "-c", fmt.Sprintf(all, "array"))), " ", ":"))
	slices.Sort(got)
	if want := []string{"burst-0:none:0", "burst-0:none:1", "burst-1:none:0", "burst-1:none:1"}; !slices.Equal(got, want) {
		t.Errorf("an array's tasks have %q, want %q", got, want)
	}
	py := testkit.Python(t, "msgpack", "cloudpickle")
	h.Write("prog.py", `import os, time
import launcher

@launcher.remote(num_cpus=0.1, num_gpus=1)
def mine(i):
    open(f"sdk-{i}", "w").close()
    while sum(f.startswith("sdk-") for f in os.listdir(".")) < 4:
        time.sleep(0.05)  # sleep: all four run at once
    return os.environ["LAUNCHER_NODE"] + ":" + os.environ["CUDA_VISIBLE_DEVICES"]

print(*sorted(launcher.get([mine.remote(i) for i in range(4)])))
`)
	if out := h.OK("run", "--cpus", "0.1", "--", py, "prog.py"); out != "burst-0:0 burst-0:1 burst-1:0 burst-1:1\n" {
		t.Errorf("SDK tasks have %q", out)
	}
	if out := h.OK("run", "--cpus", "0.1", "--", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"); out != "[]\n" {
		t.Errorf("a task without GPUs has %q", out)
	}
	h.OK("down", "queue")
	// In a batch script on the nodes' other devices: the numbers are those of the grant.
	c.OK(t, "sbatch", "-N", "1", "-w", "n2", "--gres=gpu:1", "-o", "/dev/null", "--wrap", "sleep 600")
	out := batch(t, h, c, "-N 1 -n 1 -w n2 --gres=gpu:2", "echo granted $CUDA_VISIBLE_DEVICES; launcher run --array 0-1 --gpus 1 --cpus 0.1 -- sh -c 'echo has $CUDA_VISIBLE_DEVICES'")
	for _, want := range []string{"granted 1,2\n", "has 1\n", "has 2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not there: %s", want, out)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(h.Dir, "local", "*")); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}

// A step that may use fewer cores than were granted offers those, and everybody who looks is
// told, not only the job's log.
func TestSlurmFewerCores(t *testing.T) {
	slurmtest.Whole(t)
	cores := runtime.NumCPU()
	h, _ := slurmHome(t, slurmtest.Options{Nodes: 1, CPUs: cores + 2})
	spec := strings.NewReplacer("cpus = 2\n", fmt.Sprintf("cpus = %d\n", cores+2), "resources = { cpu = 2, slot = 2 }\n", "").Replace(slurmSpec("min = 1\nmax = 1"))
	h.Write("queue.toml", spec)
	h.OK("up", "queue.toml")
	want := fmt.Sprintf("Slurm granted %d cores here and this step may use %d", cores+2, cores)
	for _, words := range [][]string{{"status"}, {"nodes"}, {"why", "burst"}, {"nodes", "--json"}} {
		if out := h.OK(words...); !strings.Contains(out, want) {
			t.Errorf("%q does not say %q: %s", words, want, out)
		}
	}
	if nodes := h.OK("nodes"); !strings.Contains(nodes, fmt.Sprintf("0/%d ", cores)) {
		t.Errorf("%d cores are offered: %s", cores, nodes)
	}
	h.OK("down", "queue")
}
