package slurm

import (
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
		"limits": {backends.Options{"account": "phys", "qos": "short", "time": "1h"}, [][]string{{"error", "more than QOS short allows, 0:05:00", `time = "5m"`},
			{"warning", "QOS short allows 1 nodes, and max is 2"}}},
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
	if err != nil || !strings.Contains(spec, "account = one of") {
		t.Errorf("proposed %q, %v", spec, err)
	}
}
