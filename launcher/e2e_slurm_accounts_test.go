package main

import (
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

func TestSlurmAccountsProbe(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Accounts: []string{
		"add qos short MaxWall=5", "add qos deny MaxTRESPerUser=node=1 flags=DenyOnLimit", "add qos hours GrpTRESMins=cpu=4",
		"add account phys", "add account one MaxJobs=1", "add account few GrpTRES=node=1", "add account theirs", "add account grpjobs GrpJobs=1",
		"add user USER account=phys qos=normal,short,deny,hours", "add user USER account=one", "add user USER account=few", "add user USER account=grpjobs",
		"add account sub MaxSubmitJobs=1", "add user USER account=sub"}})
	t.Log(c.OK(t, "sacctmgr", "-P", "show", "assoc", "format=Account,User,QOS,MaxJobs,GrpTRES,DefaultQOS"))
	t.Log(c.OK(t, "sacctmgr", "-P", "show", "user", "withassoc", "format=User,DefaultAccount"))
	for _, l := range [][]string{{"-A", "nosuch"}, {"-q", "nosuch"}, {"-A", "theirs"}, {"-A", "one", "-q", "short"}, {"-q", "deny", "-N2"}} {
		_, err := c.Run(t.Context(), "sbatch", append(l, "-t", "10", "-o", "/dev/null", "--wrap", "sleep 600")...)
		t.Log(l, err)
	}
	for _, l := range [][]string{{"-q", "short"}, {"-q", "hours"}, {"-A", "one"}, {"-A", "one"}, {"-A", "few", "-N2"}, {"-A", "sub"}, {"-A", "sub"}, {"-A", "grpjobs"}, {"-A", "grpjobs"}} {
		_, err := c.Run(t.Context(), "sbatch", append(l, "-t", "10", "-o", "/dev/null", "-J", strings.Join(l, ""), "--wrap", "sleep 600")...)
		t.Log(l, err)
	}
	testkit.Eventually(t, 10e9, func() string { if strings.Contains(c.OK(t, "squeue", "-h", "-o", "%r"), "None") { return "none" }; return "" })
	t.Log(c.OK(t, "squeue", "-o", "%A %j %T %r"))
	c.OK(t, "scancel", "-u", "launcher-t1")
	for _, more := range []string{"account = \"nosuch\"", "qos = \"nosuch\"", "account = \"phys\"\nqos = \"deny\"\nmin = 2"} {
		h.Write("queue.toml", slurmSpec("max = 2\n"+more+map[bool]string{false: "\nmin = 1", true: ""}[strings.Contains(more, "min")]))
		t.Log(h.Start("up", "queue.toml").Within(20e9))
		t.Log(h.Run("why", "burst"))
		t.Log(h.Run("status"))
		t.Log(h.Run("down", "queue"))
	}
}
