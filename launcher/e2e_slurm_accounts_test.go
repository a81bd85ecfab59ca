package main

import (
	"os"
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
