package slurm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/backends"
	"launcher/internal/testkit/slurmtest"
)

func TestSiteFacts(t *testing.T) {
	for s, want := range map[string]time.Duration{"UNLIMITED": 0, "NONE": 0, "00:30:00": 30 * time.Minute, "1-12:00:00": 36 * time.Hour,
		"7-00:00:00": 168 * time.Hour, "30": 30 * time.Minute, "2-0": 48 * time.Hour, "90:00": 90 * time.Minute, "": 0} {
		if got := span(s); got != want {
			t.Errorf("%q is %s, want %s", s, got, want)
		}
	}
	for s, want := range map[string]struct {
		kind string
		n    int
	}{"gpu:2": {"", 2}, "gpu:a100:8(S:0-1)": {"a100", 8}, "(null)": {"", 0}, "lustre:1,gpu:tesla:2(S:0,1),gpu:tesla:2": {"tesla", 4}, "gpu": {"", 0}, "": {"", 0}} {
		if kind, n := gpusOf(s); kind != want.kind || n != want.n {
			t.Errorf("%q is %q %d", s, kind, n)
		}
	}
	for v, want := range map[string]bool{"19.05.7": true, "20.02.1": true, "20.11.0": false, "22.05.8": false, "25.05.1": false, "odd": false} {
		if tooOld(v) != want {
			t.Errorf("%s: too old is %v", v, !want)
		}
	}
	for s, want := range map[string]string{"gpu": "gpu", "GPU_Long": "gpu-long", "_": "slurm"} {
		if got := poolName(s); got != want {
			t.Errorf("pool %q for %q", got, s)
		}
	}
}

// told reports whether a finding has a level, and words in what it says or its fix.
func told(found []backends.Finding, level string, words ...string) bool {
	for _, f := range found {
		ok := f.Level == level
		for _, w := range words {
			ok = ok && strings.Contains(f.What+" | "+f.Fix, w)
		}
		if ok {
			return true
		}
	}
	return false
}

// shoes has this process stand in the shoes of one that uses the cluster.
func shoes(t *testing.T, c *slurmtest.Cluster, more ...string) {
	t.Helper()
	own := environ
	environ = func() []string { return append(append(os.Environ(), c.Env()...), more...) }
	t.Cleanup(func() { environ = own })
	for _, kv := range c.Env() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
}

// TestExamine: a pool that is right, and one that asks for what the site does not give.
func TestExamine(t *testing.T) {
	slurmtest.Whole(t)
	c := slurmtest.New(t, slurmtest.Options{Nodes: 2, CPUs: 4, GPUs: 2,
		Lines: []string{"SelectTypeParameters=CR_Core_Memory", "JobAcctGatherType=jobacct_gather/linux", "JobAcctGatherParams=OverMemoryKill"},
		Parts: []string{"PartitionName=short Nodes=n1 MaxTime=30 MaxNodes=1 DefaultTime=5", "PartitionName=shut Nodes=n1 State=DOWN", "PartitionName=few Nodes=n1,n2 DefMemPerCPU=100"}})
	shoes(t, c)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := New(t.TempDir())
	wait := 20 * time.Second
	look := func(max int, o backends.Options) []backends.Finding {
		t.Helper()
		found := b.Examine(t.Context(), Patient{Pool: "p", Options: o, Max: max, Binary: exe, Wait: wait})
		for _, f := range found {
			t.Logf("%s %s | %s", f.Level, f.What, f.Fix)
		}
		return found
	}
	well := look(2, backends.Options{"partition": "main", "cpus": int64(2), "memory": "1GiB", "gres": "gpu:1", "time": "10m"})
	for _, want := range [][]string{
		{"ok", "partition main: 2 nodes with 4 cores", "2 GPUs"},
		{"ok", "memory is shared out among jobs, and 1GiB is asked for"},
		{"ok", "start a job of one node at once"},
		{"ok", "node n1", "reaches this machine at "},
		{"warning", "counts shared memory once for each process", "ends jobs by that", "UsePss"},
		{"warning", "is killed after 5s (KillWait)"},
		{"note", "left 20s after SIGKILL (UnkillableStepTimeout)"},
	} {
		if !told(well, want[0], want[1:]...) {
			t.Errorf("nothing says %q", want)
		}
	}
	if told(well, "error") {
		t.Error("a pool that is right has errors")
	}
	ill := look(3, backends.Options{"partition": "short", "memory": "8GiB", "gpus_per_node": int64(4), "time": "2h"})
	for _, want := range [][]string{
		{"error", "time asks for more than partition short ever gives, 0:30:00", `time = "30m"`},
		{"warning", "at most 1 node, and the pool may ask for 3", "nodes_per_job = 1"},
		{"warning", "max is 3, and partition short has 1 node", "max = 1"},
		{"error", "memory asks for more than nodes", `memory = "4000MiB"`},
		{"error", "4 GPUs are asked for on each node", "at most 2"},
		{"error", "sbatch: "},
	} {
		if !told(ill, want[0], want[1:]...) {
			t.Errorf("nothing says %q", want)
		}
	}
	if told(ill, "ok", "reaches this machine") {
		t.Error("a job was started that Slurm would not take")
	}
	for name, c := range map[string]struct {
		o    backends.Options
		want []string
	}{
		"nosuch":  {backends.Options{"partition": "nosuch"}, []string{"error", "there is no partition nosuch; there are main, short, shut, few"}},
		"shut":    {backends.Options{"partition": "shut"}, []string{"error", "partition shut cannot be used: it is down"}},
		"default": {backends.Options{"partition": "few", "cpus": int64(1)}, []string{"note", "jobs get 100 MB per cpu"}},
		"whole":   {backends.Options{"partition": "main", "cpus": int64(1)}, []string{"warning", "each job waits for a whole node's"}},
		"gpus":    {backends.Options{"partition": "main"}, []string{"note", "have 2 GPUs, and the pool asks for none", `gres = "gpu:2"`}},
		"time":    {backends.Options{"partition": "short"}, []string{"note", "jobs get 0:05:00, the partition's default"}},
		"account": {backends.Options{"partition": "main", "account": "x"}, []string{"note", "keeps no accounts"}},
	} {
		found := b.Examine(t.Context(), Patient{Pool: name, Options: c.o, Max: 1, Binary: exe, NoJob: true})
		if !told(found, c.want[0], c.want[1:]...) {
			t.Errorf("%s: nothing says %q: %v", name, c.want, found)
		}
	}
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(b.home, "*")); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
	// A node that is busy is not waited for long, and no home is seen that is another's.
	c.OK(t, "sbatch", "-N2", "--exclusive", "--mem=0", "--output=/dev/null", "--wrap", "sleep 600")
	wait = time.Second
	if found := look(1, backends.Options{"partition": "main", "memory": "1GiB"}); !told(found, "note", "no node was free within") {
		t.Error("a busy site is not told")
	}
}

// TestExamineAccounts: what the accounting says is compared with what a pool asks for. Lines as
// sacctmgr prints them stand in for a database that the test does not have.
func TestExamineAccounts(t *testing.T) {
	x := examination{Patient: Patient{Pool: "p", Max: 8}, q: request{Account: "phys", Time: 4 * time.Hour, TimeMin: time.Hour, QOS: "long", CPUs: 4, Memory: 8 << 30, Gres: "gpu:a100:2"}}
	x.s = site{conf: map[string]string{"AccountingStorageType": "accounting_storage/slurmdbd", "ClusterName": "here"},
		parts: []partition{{name: "gpu", keys: map[string]string{"QoS": "part"}}}}
	x.p = &x.s.parts[0]
	x.s.readLimits(func(_ string, args ...string) (string, error) {
		line := func(fields string, kv ...string) string {
			out := strings.Split(strings.TrimPrefix(fields, "format="), ",")
			for i, f := range out {
				out[i] = ""
				for k := 0; k < len(kv); k += 2 {
					if kv[k] == f {
						out[i] = kv[k+1]
					}
				}
			}
			return strings.Join(out, "|") + "\n"
		}
		switch said := strings.Join(args, " "); {
		case strings.Contains(said, "show qos"):
			return line(qosFields, "Name", "normal", "MaxTRES", "cpu=8") + line(qosFields, "Name", "part", "MaxTRESPU", "mem=16G,gres/gpu=4", "MaxSubmitPU", "3", "GrpTRES", "node=6", "MinTRES", "gres/gpu=3"), nil
		case !strings.Contains(said, "cluster=here"):
			t.Errorf("another cluster's are asked for: %s", said)
		case strings.Contains(said, "show user"):
			return "phys\nphys\n", nil
		case strings.Contains(said, "accounts=math,phys"):
			return line(assocFields, "Account", "phys", "ParentName", "fac", "GrpTRES", "node=5,gres/gpu:a100=1", "MaxJobs", "1") + line(assocFields, "Account", "math", "ParentName", "root"), nil
		case strings.Contains(said, "accounts=fac,root"):
			return line(assocFields, "Account", "fac", "ParentName", "root", "GrpJobs", "0", "GrpTRESMins", "cpu=9000") + line(assocFields, "Account", "root"), nil
		case strings.Contains(said, "user="):
			return line(assocFields, "Account", "phys", "QOS", "normal,short", "MaxWall", "02:00:00", "MaxTRES", "node=4", "MaxTRESMins", "cpu=480", "MaxSubmit", "1", "MaxJobs", "6", "GrpWall", "1-00:00:00") +
				line(assocFields, "Account", "math", "Partition", "cpu", "QOS", "normal") + "odd line\n", nil
		}
		return "", nil
	})
	x.account()
	for _, want := range [][]string{
		{"error", "QOS long may not be used with account phys", "normal,short"},
		{"error", "a job of account phys has at most 2:00:00 (MaxWall), and the pool asks for 4:00:00", `time = "2h"`}, // the least time does not help
		{"warning", "a job of account phys may have 4 nodes (MaxTRES): that is 4 nodes of the pool's, and it may ask for 8", "nodes_per_job = 4"},
		{"error", "a job of account phys may have 480 core minutes (MaxTRESMins), and one node for 4:00:00 takes 960 core minutes", `time = "2h"`},
		{"note", "your jobs of account phys together may be 6 jobs at a time (MaxJobs): where work asks for its 8 nodes one after another"},
		{"error", "a job of QOS part has at least 3 GPUs (MinTRES), and the pool asks for less"},
		{"warning", "each user of QOS part may have 16GiB of memory (MaxTRESPU): that is 2 nodes of the pool's", "max = 2"},
		{"warning", "each user of QOS part may have 4 GPUs (MaxTRESPU)", "max = 2"},
		{"note", "each user of QOS part may be 3 jobs in the queue (MaxSubmitPU): the next job before the end of this one needs two"},
		{"warning", "all jobs of QOS part together may have 6 nodes (GrpTRES), those of others too", "max = 6"},
		{"error", "all jobs of account phys together may have 1 a100 GPU (GrpTRES), and each node asks for 2 a100 GPUs: none ever starts", `gres = "gpu:a100:1"`},
		{"error", "all jobs of account fac together may be none at a time (GrpJobs): nothing starts", "another account"},
		{"note", "all jobs of account fac together have 9000 core minutes in all (GrpTRESMins)"},
		{"note", "your jobs of account phys together have 24:00:00 of time in all (GrpWall)"},
	} {
		if !told(x.found, want[0], want[1:]...) {
			t.Errorf("nothing says %q: %v", want, x.found)
		}
	}
	for _, f := range x.found {
		switch {
		case strings.Contains(f.What, "account phys together may have 5 nodes"), strings.Contains(f.What, "(MaxSubmit)"):
			t.Errorf("a limit of the partition's QOS does not go before: %s", f.What)
		case strings.Contains(f.What, "8 cores"):
			t.Errorf("a QOS that is not the job's counts: %s", f.What)
		}
	}
	x.s.conf["AccountingStorageEnforce"], x.found = "associations,qos", nil
	if x.account(); told(x.found, "warning") {
		t.Errorf("limits that nobody keeps to: %v", x.found)
	}
	x.found, x.q = nil, request{Account: "math"}
	if x.account(); !told(x.found, "error", `account "math" is not yours in partition gpu`, "math, phys") {
		t.Errorf("got %v", x.found)
	}
}

// How long Slurm lets a node leave is compared with how long it needs.
func TestExamineEndings(t *testing.T) {
	for conf, want := range map[[2]string][]string{
		{"30 sec", "60 sec"}:  nil,
		{"19 sec", "60 sec"}:  {"warning", "is killed after 19s (KillWait), and a node takes up to 20s", "KillWait=30"},
		{"0 sec", "120 sec"}:  {"warning", "is killed after 0s (KillWait)"},
		{"600 sec", "30 sec"}: {"note", "left 30s after SIGKILL (UnkillableStepTimeout)", "UnkillableStepTimeout=120"},
		{"", "(null)"}:        nil,
	} {
		x := examination{Patient: Patient{Pool: "p"}, s: site{conf: map[string]string{"KillWait": conf[0], "UnkillableStepTimeout": conf[1]}}}
		x.endings()
		if len(x.found) > 1 || (want == nil) != (len(x.found) == 0) || want != nil && !told(x.found, want[0], want[1:]...) {
			t.Errorf("%q: %v", conf, x.found)
		}
	}
}
