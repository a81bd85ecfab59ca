package slurm

import (
	"strings"
	"testing"
)

// Whatever a job waits for is said in words, with Slurm's own beside them, and what waiting
// does not end is told apart.
func TestReasonsInWords(t *testing.T) {
	for reason, want := range map[string]string{
		"Priority":                                 "other jobs are before it",
		"Resources":                                "no nodes are free",
		"Dependency":                               "it waits for another job",
		"DependencyNeverSatisfied":                 "never starts",
		"BeginTime":                                "begin time",
		"Licenses":                                 "licences",
		"JobHeldUser":                              "scontrol release",
		"JobHeldAdmin":                             "administrator",
		"launch_failed_requeued_held":              "scontrol release",
		"PartitionTimeLimit":                       "more time than the partition gives; it never starts",
		"ReqNodeNotAvail":                          "down or reserved (",
		"AssocGrpCPUMinutesLimit":                  "your account has used up its cores times minutes",
		"AssocGrpCpuLimit":                         "your account has its limit of cores reached by all of its jobs together",
		"AssocGrpCPURunMinutesLimit":               "your account has its limit of cores times the minutes that are still to run reached by all",
		"AssocGrpGRESMinutes":                      "your account has used up its GPUs or other GRES times minutes",
		"AssocMaxJobsLimit":                        "your account has its limit of running jobs reached by your jobs",
		"AssocMaxWallDurationPerJobLimit":          "your account never gives one job so much of time; it never starts",
		"QOSMaxJobsPerUserLimit":                   "the QOS has its limit of running jobs reached by your jobs",
		"QOSMaxCpuPerUserLimit":                    "the QOS has its limit of cores reached by your jobs",
		"QOSMaxGRESPerUser":                        "the QOS has its limit of GPUs or other GRES reached by your jobs",
		"QOSMaxNodePerJobLimit":                    "the QOS never gives one job so much of nodes",
		"QOSMaxSubmitJobPerUserLimit":              "the QOS has its limit of jobs in the queue reached by your jobs",
		"QOSMinGRES":                               "the QOS wants at least so much of GPUs",
		"QOSGrpNodeLimit":                          "the QOS has its limit of nodes reached by all of its jobs together",
		"QOSGrpMemoryMinutes":                      "the QOS has used up its memory times minutes",
		"MaxJobsPerAccount":                        "the site has its limit of running jobs reached by the jobs of this account",
		"SomeNewGrpLimit":                          "a limit of the account or the QOS",
		"SomethingElse":                            "SomethingElse",
		"ReqNodeNotAvail, UnavailableNodes:n[1-2]": "down or reserved: n[1-2] (",
		"Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": "down, drained or kept for others",
	} {
		got := entry{id: "7", reason: reason}.waits()
		if !strings.Contains(got, want) || !strings.Contains(got, reason) || !strings.HasPrefix(got, "Slurm job 7 waits: ") {
			t.Errorf("%s: %q, wanted %q in it", reason, got, want)
		}
	}
}
