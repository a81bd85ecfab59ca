package slurm

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

func TestHostsOf(t *testing.T) {
	for list, want := range map[string]string{
		"": "", "n1": "n1", "n[1-3,5],m7": "n1 n2 n3 n5 m7", "r[1-2]n[08-09]": "r1n08 r1n09 r2n08 r2n09", "a,b,c": "a b c",
	} {
		got, err := hostsOf(list)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %q, %v; wanted %q", list, got, err, want)
		}
	}
	if _, err := hostsOf("n[1"); err == nil {
		t.Error("a list that is cut off was taken")
	}
}

func TestPerNode(t *testing.T) {
	for _, c := range []struct {
		list    string
		k, want int
	}{{"72(x2),36", 0, 72}, {"72(x2),36", 1, 72}, {"72(x2),36", 2, 36}, {"72(x2),36", 3, 0}, {"4", 0, 4}, {"", 0, 0}, {"x(x2)", 0, 0}} {
		if got := perNode(c.list, c.k); got != c.want {
			t.Errorf("%q, node %d: %d, wanted %d", c.list, c.k, got, c.want)
		}
	}
}

func TestGrantOf(t *testing.T) {
	env := map[string]string{"SLURM_JOB_NODELIST": "n[1-3]", "SLURMD_NODENAME": "n3", "SLURM_JOB_CPUS_PER_NODE": "100000(x2),1", "SLURM_MEM_PER_CPU": "512"}
	get := func(k string) string { return env[k] }
	var c wire.NodeConfig
	note := grant(&c, get)
	if c.Memory != 512<<20 || usable() > 1 && (c.Resources == nil || c.Resources.CPU != wire.Unit) || note != "" {
		t.Errorf("one core of many: %+v, %q", c, note)
	}
	env["SLURMD_NODENAME"] = "n2"
	c = wire.NodeConfig{}
	if note = grant(&c, get); c.Resources != nil || !strings.Contains(note, "granted 100000 cores") {
		t.Errorf("fewer cores than granted: %+v, %q", c, note)
	}
}

// GPUs are known by the numbers that programs use, and only those that were granted are.
func TestGrantedGPUs(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want []int
	}{
		{map[string]string{"SLURM_STEP_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1", "ROCR_VISIBLE_DEVICES": "2,3"}, []int{0, 1}},
		{map[string]string{"SLURM_GPUS_ON_NODE": "2", "ROCR_VISIBLE_DEVICES": "2,3"}, []int{2, 3}},
		{map[string]string{"SLURM_GPUS_ON_NODE": "0", "CUDA_VISIBLE_DEVICES": "0"}, nil},
		{map[string]string{"CUDA_VISIBLE_DEVICES": "0,1"}, nil}, // the user's own: the site hands out no GPUs
		{map[string]string{"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "MIG-1234"}, nil},
		{map[string]string{"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, nil},
	} {
		var cfg wire.NodeConfig
		if grant(&cfg, func(k string) string { return c.env[k] }); !slices.Equal(cfg.GPUs, c.want) {
			t.Errorf("%v: %v, wanted %v", c.env, cfg.GPUs, c.want)
		}
	}
}

func TestScript(t *testing.T) {
	q, faults := parse(backends.Options{"partition": "gpu", "account": "lab", "time": []any{"90m", "26h"}, "gres": "gpu:a100:8", "cpus": int64(16),
		"memory": "64GiB", "exclusive": true, "constraint": "ib&fast", "args": []any{"--mail-type=END"}})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	b := New("/home/a/.launcher")
	r := backends.Request{Token: "n-1-7", Cluster: "my lab", Pool: "burst", Binary: "/opt/my bin/launcher", Nodes: []wire.NodeID{"burst-0", "burst-1"}, Epochs: []wire.Epoch{1, 1}}
	jobs, err := b.jobs(q, r)
	if err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	text, err := q.script(jobs[0])
	if err != nil {
		t.Fatal(err)
	}
	want := `#!/bin/bash
# burst-0 burst-1 of pool burst, cluster my lab
#SBATCH --job-name=launcher-n-1-7
#SBATCH --comment=launcher:my_lab:burst:e3b0c442:n-1-7
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --constraint=ib&fast
#SBATCH --time=26:00:00
#SBATCH --time-min=1:30:00
#SBATCH --cpus-per-task=16
#SBATCH --mem=65536M
#SBATCH --gres=gpu:a100:8
#SBATCH --exclusive
#SBATCH --no-kill
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output="/home/a/.launcher/clusters/my lab/slurm/launcher-n-1-7.log"
#SBATCH --mail-type=END
exec srun --overlap -N 2 -n 2 --ntasks-per-node=1 --cpu-bind=none --export=ALL --no-kill --kill-on-bad-exit=0 -i none '/opt/my bin/launcher' slurm-node --from '/home/a/.launcher/clusters/my lab/slurm/launcher-n-1-7.nodes'
`
	if text != want {
		t.Errorf("the script is\n%s\nwanted\n%s", text, want)
	}
	q.PerJob = 1
	if jobs, err = b.jobs(q, r); err != nil || len(jobs) != 2 || jobs[1].Name != "launcher-n-1-7.1" || !slices.Equal(jobs[1].nodes, r.Nodes[1:]) {
		t.Errorf("one node a job: %+v, %v", jobs, err)
	}
}

// A job in another's place waits for it, unless they may overlap, and asks for no more time
// than the chain has.
func TestSuccessorScript(t *testing.T) {
	home := t.TempDir()
	b := New(home)
	dir, _ := b.dirOf("lab")
	first := record{V: 1, Dir: dir, Name: "launcher-a", Token: "a", Nodes: []wire.NodeID{"burst-0"}, Job: "41"}
	if err := first.write(); err != nil {
		t.Fatal(err)
	}
	over := record{V: 1, Dir: dir, Name: "launcher-b", Token: "b", Nodes: []wire.NodeID{"burst-1"}, Job: "40", End: &backends.Status{State: backends.Done}}
	if err := over.write(); err != nil {
		t.Fatal(err)
	}
	for _, overlap := range []bool{false, true} {
		q, faults := parse(backends.Options{"time": []any{"10m", "4h"}, "overlap": overlap})
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		jobs, err := b.jobs(q, backends.Request{Token: "c", Cluster: "lab", Pool: "burst", Nodes: []wire.NodeID{"burst-2"}, Epochs: []wire.Epoch{1},
			After: [][]byte{over.alloc().Handle, first.alloc().Handle}, Within: int64(90 * time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		text, err := q.script(jobs[0])
		if err != nil || strings.Contains(text, "#SBATCH --dependency=afterany:41\n") == overlap || !strings.Contains(text, "--time=1:30:00\n#SBATCH --time-min=0:10:00\n") {
			t.Errorf("overlap %v: %v\n%s", overlap, err, text)
		}
	}
}

// What a failure says decides whether it is known that nothing was submitted.
func TestKinds(t *testing.T) {
	for said, want := range map[string]errs.Kind{
		"Batch job submission failed: Invalid partition name specified":                                                      errs.Invalid,
		"Batch job submission failed: Invalid account or account/partition combination specified":                            errs.Invalid,
		"Batch job submission failed: Unable to contact slurm controller (connect failure)":                                  errs.Unavailable,
		"Batch job submission failed: Socket timed out on send/recv operation":                                               errs.Unavailable,
		"Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)": errs.Exhausted,
		"Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)":                       errs.Invalid,
		"Batch job submission failed: Access/permission denied":                                                              errs.Permission,
		"Batch job submission failed: Resource temporarily unavailable":                                                      errs.Exhausted,
		"Slurm job queue full, sleeping and retrying":                                                                        errs.Exhausted,
		"Slurm temporarily unable to accept job, sleeping and retrying":                                                      errs.Exhausted,
		"AssocMaxSubmitJobLimit":                        errs.Exhausted,
		"QOSMaxSubmitJobPerUserLimit":                   errs.Exhausted,
		"Rate limit exceeded, please retry momentarily": errs.Exhausted,
	} {
		if got := kindOf(said); got != want {
			t.Errorf("%q: %s, wanted %s", said, got, want)
		}
	}
}

func TestParseQueue(t *testing.T) {
	s := parseQueue("13|PENDING|Resources||(null)|1700000000|N/A|launcher:lab:p:x:t|launcher-t\n9|RUNNING|None|n[1-2]|n1|1700000000|2023-11-14T22:13:20|(null)|launcher-t\n8|COMPLETED|None|n1|n1|1|2|(null)|launcher-t\nnonsense\n10|RUNNING|None|n1|n1|1|2|(null)|a|name|with bars\n")
	es := s.byName["launcher-t"]
	if len(es) != 3 || es[0].id != "9" || es[1].id != "13" || es[2].id != "8" {
		t.Errorf("jobs of one name: %+v, wanted those that are not over first, the older before", es)
	}
	if es[0].end == 0 || es[1].start != 1700000000 || es[1].end != 0 {
		t.Errorf("times: %+v", es)
	}
	if !strings.Contains(es[1].waits(), "no nodes are free (Resources)") || !strings.Contains(es[1].waits(), time.Unix(1700000000, 0).Format("2006-01-02 15:04")) {
		t.Errorf("why: %q", es[1].waits())
	}
	if s.byName["a|name|with bars"] == nil {
		t.Error("a name with bars was cut")
	}
}

// Options of an enclosing allocation do not reach sbatch; the user's defaults do where the
// pool says nothing.
func TestEnvironment(t *testing.T) {
	own := []string{"PATH=/bin", "SLURM_CONF=/c", "SLURM_JOB_ID=1", "SBATCH_ACCOUNT=mine", "SBATCH_PARTITION=p", "SBATCH_TIMELIMIT=1", "SRUN_CPUS_PER_TASK=3", "LAUNCHER_SOCKET=x", "LAUNCHER_HOME=/h"}
	got := environment(own, &request{Partition: "gpu"})
	want := []string{"PATH=/bin", "SLURM_CONF=/c", "SBATCH_ACCOUNT=mine", "LAUNCHER_HOME=/h", "SLURM_TIME_FORMAT=%s"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, wanted %q", got, want)
	}
}

// What became of a submission is known once the controller has answered for a while, also one
// that never answers swiftly.
func TestHearing(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	var swift, slow hearing
	for s := range 30 {
		swift.answered(at(s), at(s+1))
	}
	if got := swift.sure(); !got.Equal(at(1).Add(backlog)) {
		t.Errorf("of one that answers swiftly: sure at %v", got.Unix()-1000)
	}
	for s := 0; s < 100; s += 3 {
		slow.answered(at(s), at(s+3))
	}
	if got := slow.sure(); !got.Equal(at(3).Add(slowBacklog)) {
		t.Errorf("of one that is slow: sure at %v", got.Unix()-1000)
	}
	swift.answered(at(40), at(50)) // it was stopped
	if got := swift.sure(); !got.Equal(at(50).Add(backlog)) {
		t.Errorf("of one that was stopped: sure at %v", got.Unix()-1000)
	}
}

// TestFailureIsNews: that the controller does not answer is told though what it said before
// would be new enough.
func TestFailureIsNews(t *testing.T) {
	b := New(t.TempDir())
	now := time.Now()
	b.last = &snapshot{at: now.Add(-2 * time.Second)}
	if s, err := b.look(t.Context(), now.Add(-time.Minute)); s != b.last {
		t.Fatalf("a snapshot that is new enough: %v, %v", s, err)
	}
	b.failed, b.failedAt = errors.New("squeue: timed out"), now.Add(-time.Second)
	if s, err := b.look(t.Context(), now.Add(-time.Minute)); err != b.failed {
		t.Errorf("after a failure: %v, %v", s, err)
	}
}

// What sacct prints of ended jobs is read by name; what it says of others counts for nothing.
func TestParsePast(t *testing.T) {
	past := parsePast("7|CANCELLED by 1000|launcher-a\n8|TIMEOUT|launcher-b|c\n9|RUNNING|launcher-d\nno line\n\n")
	if len(past) != 2 || past["launcher-a"].state != "CANCELLED" || past["launcher-a"].id != "7" || past["launcher-b|c"].state != "TIMEOUT" {
		t.Errorf("%+v", past)
	}
}
