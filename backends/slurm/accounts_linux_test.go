package slurm

import (
	"strings"
	"testing"

	"launcher/backends"
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
