package slurm

import (
	"os"
	"strings"
	"testing"

	"launcher/backends"
	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// A job that waits for a limit of its account or its QOS says for which, in words, and runs
// when there is room.
func TestLimits(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{Nodes: 2, CPUs: 8, Lines: []string{"AccountingStorageEnforce=associations,limits,qos,safe"}, Accounts: []string{
		"add qos short MaxWall=5", "add qos hours GrpTRESMins=cpu=4", "add account phys", "add account one MaxJobs=1", "add account few GrpTRES=node=1", "add account both GrpJobs=1",
		"add user USER account=phys,one,few,both", "modify user USER where account=phys set qos=normal,short,hours"}})
	b := New(w.home)
	waits := func(words string) func(backends.Status) bool {
		return func(s backends.Status) bool {
			return s.State == backends.Pending && strings.Contains(s.Why, words)
		}
	}
	ask := func(token string, nodes int, o backends.Options) []backends.Alloc {
		o["cpus"], o["time"] = int64(1), "10m"
		return w.submit(b, w.request(token, nodes, o))
	}
	for token, o := range map[string]backends.Options{"one": {"account": "one"}, "both": {"account": "both"}} {
		first := ask(token+"1", 1, backends.Options{"account": o["account"]})
		w.await(b, first, isRunning)
		second := ask(token+"2", 1, o)
		if token == "one" {
			w.await(b, second, waits("your account has its limit of running jobs reached by your jobs (AssocMaxJobsLimit)"))
		} else {
			w.await(b, second, waits("your account has its limit of running jobs reached by all of its jobs together (AssocGrpJobsLimit)"))
		}
		if err := b.Cancel(w.ctx(), [][]byte{first[0].Handle}); err != nil {
			t.Fatal(err)
		}
		w.await(b, second, isRunning)
	}
	w.await(b, ask("few", 2, backends.Options{"account": "few"}), waits("your account has its limit of nodes reached by all of its jobs together (AssocGrpNodeLimit)"))
	w.await(b, ask("short", 1, backends.Options{"account": "phys", "qos": "short"}), waits("the QOS never gives one job so much of time; it never starts as it is (QOSMaxWallDurationPerJobLimit)"))
	w.await(b, ask("hours", 1, backends.Options{"account": "phys", "qos": "hours"}), waits("the QOS has used up its cores times minutes, or has less of it left than the job may take (QOSGrpCPUMinutesLimit)"))
}

// How a job ended that the queue has forgotten is told by the accounting: also to a head that
// was away all the time.
func TestForgotten(t *testing.T) {
	slurmtest.Whole(t)
	w := newWorld(t, slurmtest.Options{Nodes: 2, Lines: []string{"MinJobAge=2"}, Accounts: []string{"add account phys", "add user USER account=phys"}})
	b := New(w.home)
	asked := map[string][]backends.Alloc{}
	for _, token := range []string{"cancelled", "timeout"} {
		asked[token] = w.submit(b, w.request(token, 1, backends.Options{"time": "10m", "cpus": int64(1)}))
		w.await(b, asked[token], isRunning)
		testkit.Eventually(t, bound, func() string { // a script whose srun has no step yet fails by that
			if out := w.OK(t, "squeue", "-h", "-s", "-o", "%i"); !strings.Contains(out, w.id(token)+".0") {
				return "steps: " + out
			}
			return ""
		})
	}
	w.OK(t, "scancel", w.id("cancelled"))
	w.OK(t, "scontrol", "update", "JobId="+w.id("timeout"), "EndTime=now")
	testkit.Eventually(t, 3*bound, func() string { return w.OK(t, "squeue", "-h", "-t", "all") })
	again := New(w.home)
	for token, want := range map[string]backends.Status{"cancelled": {State: backends.Failed, Why: "was cancelled, not by launcher"}, "timeout": {State: backends.Done, Why: "the time of Slurm job"}} {
		if st := w.await(again, asked[token], isOver); st.State != want.State || !strings.Contains(st.Why, want.Why) {
			t.Errorf("%s: %+v", token, st)
		}
	}
}

// doctor reads from a real accounting which accounts and QOS are the user's, their limits, and
// by which QOS jobs may be ended.
func TestExamineRealAccounts(t *testing.T) {
	slurmtest.Whole(t)
	c := slurmtest.New(t, slurmtest.Options{Nodes: 2, Lines: []string{"PreemptType=preempt/qos", "PreemptMode=GANG,SUSPEND"}, Accounts: []string{
		"add qos soft GraceTime=90 PreemptMode=requeue", "add qos still", "add qos first preempt=soft,still", "add qos short MaxWall=5 MaxTRESPerUser=node=1",
		"add account phys", "add account math", "add account theirs", "add user USER account=phys,math", "modify user USER where account=phys set qos=normal,soft,still,short defaultqos=soft"}})
	shoes(t, c)
	b := New(t.TempDir())
	for name, x := range map[string]struct {
		o     backends.Options
		wants [][]string
	}{
		"own": {backends.Options{"account": "phys"}, [][]string{{"ok", "accounts math, phys are yours; with phys QOS normal,short,soft,still"},
			{"note", "QOS soft, by those of QOS first may be preempted (REQUEUE, grace 90 s)"}}},
		"suspended": {backends.Options{"account": "phys", "qos": "still"}, [][]string{{"note", "QOS still, by those of QOS first may be suspended (GANG,SUSPEND)"}}},
		"limits": {backends.Options{"account": "phys", "qos": "short", "time": "1h"}, [][]string{{"error", "a job of QOS short has at most 0:05:00 (MaxWall)", `time = "5m"`},
			{"warning", "each user of QOS short may have 1 node (MaxTRESPU)", "max = 1"}}},
		"account": {backends.Options{"account": "theirs"}, [][]string{{"error", `account "theirs" is not yours`, "math, phys"}}},
		"qos":     {backends.Options{"account": "math", "qos": "soft"}, [][]string{{"error", "QOS soft may not be used with account math", "normal"}}},
	} {
		x.o["partition"] = "main"
		found := b.Examine(t.Context(), Patient{Pool: name, Options: x.o, Max: 2, NoJob: true})
		for _, want := range x.wants {
			if !told(found, want[0], want[1:]...) {
				t.Errorf("%s: nothing says %q: %v", name, want, found)
			}
		}
	}
	spec, err := b.Propose(t.Context(), "")
	if err != nil || !strings.Contains(spec, "# account = one of math, phys; without, math, your default\n") {
		t.Errorf("proposed %q, %v", spec, err)
	}
}

// What is set on accounts above the user's, and on its own association, is said beforehand by
// doctor; the spec that is proposed keeps to it, with the account and the QOS that the
// partition takes, and Slurm would start it.
func TestLimitsBeforehand(t *testing.T) {
	slurmtest.Whole(t)
	c := slurmtest.New(t, slurmtest.Options{Nodes: 2, CPUs: 4, Parts: []string{"PartitionName=phys Nodes=ALL AllowAccounts=phys AllowQos=long", "PartitionName=theirs Nodes=ALL AllowQos=others",
		"PartitionName=rest Nodes=ALL DenyAccounts=math"}, Accounts: []string{
		"add qos long MaxTRESPerUser=cpu=3", "add qos others", "add account fac GrpTRES=node=1", "add account phys parent=fac MaxWall=90", "add account math", "add account shut GrpSubmitJobs=0",
		"add user USER account=math,phys,shut", "modify user USER where account=phys set qos=normal,long MaxJobs=1"}})
	shoes(t, c)
	b := New(t.TempDir())
	look := func(o backends.Options, max int, wants ...[]string) {
		t.Helper()
		found := b.Examine(t.Context(), Patient{Pool: "p", Options: o, Max: max, NoJob: true})
		for _, want := range wants {
			if !told(found, want[0], want[1:]...) {
				t.Errorf("nothing says %q: %v", want, found)
			}
		}
	}
	look(backends.Options{"partition": "phys", "account": "phys", "qos": "long", "cpus": int64(4), "time": []any{"1h", "2h"}, "nodes_per_job": int64(1)}, 2,
		[]string{"error", "each user of QOS long may have 3 cores (MaxTRESPU), and each node asks for 4 cores", "cpus = 3"},
		[]string{"error", "a job of account phys has at most 1:30:00 (MaxWall)", `time = "90m"`},
		[]string{"warning", "your jobs of account phys together may be 1 job at a time (MaxJobs), and 2 nodes are 2 of them", "max = 1"},
		[]string{"warning", "all jobs of account fac together may have 1 node (GrpTRES), those of others too", "max = 1"})
	look(backends.Options{"partition": "main", "account": "shut"}, 1, []string{"error", "all jobs of account shut together may be none in the queue (GrpSubmit)"})
	look(backends.Options{"partition": "phys"}, 1, []string{"error", "partition phys is not for account math", "account = one of phys"})
	look(backends.Options{"partition": "phys", "account": "phys"}, 1, []string{"error", "partition phys is not for QOS normal", "qos = one of long"})
	look(backends.Options{"partition": "theirs"}, 1, []string{"error", "none of your accounts and QOS may use it (AllowQos=others)"})
	for name, wants := range map[string][]string{
		"phys": {"account = \"phys\"\n", "qos = \"long\"\n", "cpus = 3\n", "max = 1\n", `time = ["1h", "90m"]`, "# each user of QOS long may have 3 cores (MaxTRESPU), and each node asks for 4 cores"},
		"rest": {"account = \"phys\"   # or one of shut\n", "# qos = one of long, normal; without, normal, your default\n", "theirs: not for you: none of your accounts and QOS"},
	} {
		spec, err := b.Propose(t.Context(), name)
		for _, w := range wants {
			if err != nil || !strings.Contains(spec, w) {
				t.Errorf("%s: %q is not in\n%s %v", name, w, spec, err)
			}
		}
		o := backends.Options{"partition": name, "account": "phys", "cpus": int64(3), "time": []any{"1h", "90m"}}
		if name == "phys" {
			o["qos"] = "long"
		}
		look(o, 1, []string{"ok", "Slurm would start a job of one node at once"})
	}
	environ = func() []string {
		return append(append(os.Environ(), c.Env()...), "SBATCH_ACCOUNT=phys", "SBATCH_QOS=long", "SBATCH_PARTITION=phys")
	}
	look(backends.Options{"cpus": int64(3)}, 1, []string{"ok", "with phys QOS"}, []string{"ok", "Slurm would start a job of one node at once"})
}
