package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// What the accounting refuses is said in Slurm's words with what to do, and asked again less
// and less often: an account, a QOS that are none or another's, a limit that denies.
func TestSlurmAccounts(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Accounts: []string{"add qos deny MaxTRESPerUser=node=1 flags=DenyOnLimit", "add qos others", "add account phys", "add account theirs",
		"add user USER account=phys qos=normal,deny"}})
	calls := counted(t, &h.Env, "sbatch")
	for _, x := range []struct {
		keys  string
		words []string
	}{
		{`account = "nosuch"`, []string{"Invalid account or account/partition combination", "which accounts are yours"}},
		{`account = "theirs"`, []string{"Invalid account or account/partition combination", "which accounts are yours"}},
		{`qos = "nosuch"`, []string{"Invalid qos specification", "which QOS are yours"}},
		{`qos = "others"`, []string{"Invalid qos specification", "which QOS are yours"}},
	} {
		h.Write("queue.toml", slurmSpec("min = 1\n"+x.keys))
		h.Fails(125, append(x.words, "pool burst"), "up", "queue.toml")
		if out := h.OK("why", "burst"); !strings.Contains(out, x.words[0]) || !strings.Contains(out, x.words[1]) {
			t.Errorf("why: %q", out)
		}
		h.OK("down", "queue")
	}
	h.Write("queue.toml", slurmSpec("min = 2\nqos = \"deny\""))
	before := calls()["sbatch"]
	up := h.Start("up", "queue.toml")
	awaitWhy(t, h, "QOSMaxNodePerUserLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits) (the QOS has its limit of nodes reached by your jobs: ask for less")
	again := regexp.MustCompile(`asked for again in (\d+) s`)
	testkit.Eventually(t, 2*testkit.Bound, func() string {
		out := h.OK("why", "burst")
		if m := again.FindStringSubmatch(out); m != nil {
			if s, _ := strconv.Atoi(m[1]); s > 4 {
				return ""
			}
		}
		return out
	})
	if n := calls()["sbatch"] - before; n > 6 {
		t.Errorf("sbatch was called %d times before it was let be for 8 s", n)
	}
	if out := h.OK("status"); !strings.Contains(out, "QOSMaxNodePerUserLimit") {
		t.Errorf("status: %q", out)
	}
	up.Signal(os.Interrupt)
	up.Wait()
	h.OK("down", "queue")
	// One that is within the limit starts, with the account and the QOS that were named.
	h.Write("queue.toml", slurmSpec("min = 1\nmax = 1\naccount = \"phys\"\nqos = \"deny\""))
	h.OK("up", "queue.toml")
	if out := c.OK(t, "squeue", "-h", "-o", "%a %q %T"); out != "phys deny RUNNING\n" {
		t.Errorf("squeue: %q", out)
	}
	h.OK("down", "queue")
}

// Work whose job a QOS preempts, with and without a grace, put back into the queue or
// cancelled, is told and runs again in the next job; nothing counts against it. A drain that
// simulates it does the same.
func TestSlurmPreemptedByQOS(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Lines: []string{"PreemptType=preempt/qos", "PreemptMode=REQUEUE", "KillWait=20"}, Accounts: []string{
		"add qos gentle GraceTime=15 PreemptMode=cancel", "add qos again GraceTime=15 PreemptMode=requeue", "add qos hard PreemptMode=requeue", "add qos first preempt=gentle,again,hard",
		"add account phys", "add user USER account=phys qos=normal,gentle,again,hard,first"}})
	h.Write("work.sh", `n=$(cat $1/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > $1/n
trap '' USR1 TERM
echo life $LAUNCHER_ATTEMPT
touch $1/began-$n
until test -e $1/enough; do
	if "$LAUNCHER" should-leave > $1/told-$n; then
		[ $1 = hard ] || exit 75
		until test -e $1/enough; do sleep 0.1; done # that one is stopped: nor does it count then
	fi
	sleep 0.1
done
`)
	for _, qos := range []string{"gentle", "again", "hard", "simulated"} {
		asked := qos
		if qos == "simulated" {
			asked = "normal"
		}
		h.Write("queue.toml", slurmSpec("max = 1\nqos = \""+asked+"\""))
		h.OK("up", "queue.toml")
		h.Write(qos+"/x", "")
		run := h.Start("run", "--cpus", "1", "--", "bash", "work.sh", qos)
		life := func(n string) {
			t.Helper()
			testkit.Eventually(t, 3*testkit.Bound, func() string {
				if _, err := os.Stat(filepath.Join(h.Work, qos, "began-"+n)); err != nil {
					return h.OK("why", "burst") + run.Err()
				}
				return ""
			})
		}
		life("1")
		if asked == qos {
			c.OK(t, "sbatch", "-q", "first", "-N", "2", "-c", "2", "-J", "before-it", "-o", "/dev/null", "-t", "1", "--wrap", "sleep 3")
		} else {
			h.OK("drain", regexp.MustCompile(`burst-\d+`).FindString(h.OK("nodes")), "--simulate-preemption")
		}
		life("2")
		h.Write(qos+"/enough", "")
		if r := run.Within(3 * testkit.Bound); r.Code != 0 || strings.Count(r.Out, "life") != 2 {
			t.Errorf("%s: %s", qos, r)
		}
		if told := h.Read(qos + "/told-1"); told != "leave\n" {
			t.Errorf("%s: it was told %q", qos, told)
		}
		h.OK("down", "queue")
	}
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}
