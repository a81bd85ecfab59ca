package slurm

import (
	"regexp"
	"strings"
	"time"
)

// reasons says in words what Slurm abbreviates. What never ends by waiting says so.
var reasons = map[string]string{
	"None":                            "Slurm has not looked at it yet",
	"Resources":                       "no nodes are free",
	"Priority":                        "other jobs are before it",
	"Dependency":                      "it waits for another job",
	"DependencyNeverSatisfied":        "it waits for a job that did not end as it should have; it never starts",
	"BeginTime":                       "its begin time has not come",
	"JobHeldUser":                     "it is held; `scontrol release` lets it go on",
	"JobHeldAdmin":                    "an administrator holds it",
	"launch failed requeued held":     "its start failed on a node and Slurm holds it; `scontrol release` lets it be tried again",
	"Licenses":                        "all licences that it asks for are in use",
	"Reservation":                     "it waits for its reservation",
	"ReservationDeleted":              "its reservation was deleted; it never starts",
	"ReqNodeNotAvail":                 "nodes that it needs are down or reserved",
	"Nodes required for job are DOWN": "nodes that it needs are down, drained or kept for others",
	"NodeDown":                        "nodes are down",
	"BadConstraints":                  "no node is as it asks; it never starts as it is",
	"PartitionNodeLimit":              "the partition never gives a job so many nodes",
	"PartitionConfig":                 "the partition never gives a job so many nodes, or such nodes",
	"PartitionTimeLimit":              "it asks for more time than the partition gives; it never starts as it is",
	"PartitionDown":                   "the partition is down",
	"PartitionInactive":               "the partition takes no jobs now",
	"AccountNotAllowed":               "the account may not use this partition; it never starts as it is",
	"InvalidAccount":                  "the account is none any more; it never starts as it is",
	"AccountingPolicy":                "the accounting policy does not let it start now",
	"QOSNotAllowed":                   "the QOS may not use this partition; it never starts as it is",
	"InvalidQOS":                      "the QOS is none any more; it never starts as it is",
	"QOSUsageThreshold":               "the QOS wants more fair share left than you have",
	"JobArrayTaskLimit":               "so many tasks of its array may not run at once",
	"Cleaning":                        "Slurm cleans up after its last run",
	"Prolog":                          "the site's prolog runs on its nodes",
	"SchedDefer":                      "Slurm looks at waiting jobs only now and then",
	"FrontEndDown":                    "no front end node is up",
	"DeadLine":                        "it cannot end before its deadline",
	"PowerNotAvail":                   "there is not enough power for it now",
	"PowerReserved":                   "the power that it needs is reserved",
	"BurstBufferResources":            "no burst buffer is free",
	"BurstBufferStageIn":              "its burst buffer is being filled",
}

// limitRE reads what Slurm calls limits: of whom, over how many jobs, of what.
var (
	limitRE = regexp.MustCompile(`^(QOS|Assoc|Association)?(Grp|Max|Min)(.+?)(PerJob|PerUser|PerAccount|PerNode|Per)?(Limit|NotSatisfied)?$`)
	kindsRE = regexp.MustCompile(`^(Cpu|CPU|Node|Mem|Memory|GRES|License|BB|Billing|Energy|Job|Jobs|SubmitJob|SubmitJobs|Wall|WallDuration|UnknownTRES)(RunMinutes|Minutes|RunMins|Mins)?s?$`)
	kinds   = map[string]string{"Cpu": "cores", "CPU": "cores", "Node": "nodes", "Mem": "memory", "Memory": "memory", "GRES": "GPUs or other GRES", "License": "licences",
		"BB": "burst buffer", "Billing": "billing units", "Energy": "energy", "UnknownTRES": "something", "Job": "running jobs", "Jobs": "running jobs",
		"SubmitJob": "jobs in the queue", "SubmitJobs": "jobs in the queue", "Wall": "time", "WallDuration": "time"}
)

// limited says in words which limit a job waits for; "" = it is none.
func limited(reason string) string {
	m := limitRE.FindStringSubmatch(reason)
	if m == nil {
		return ""
	}
	k := kindsRE.FindStringSubmatch(strings.TrimSuffix(m[3], "s"))
	if k == nil {
		k = kindsRE.FindStringSubmatch(m[3])
	}
	if k == nil {
		return ""
	}
	of := map[string]string{"QOS": "the QOS", "Assoc": "your account", "Association": "your account"}[m[1]]
	if of == "" {
		of = "the site"
	}
	what := kinds[k[1]]
	switch {
	case strings.HasPrefix(k[2], "Run"):
		what += " times the minutes that are still to run"
	case k[2] != "":
		what += " times minutes"
	}
	switch {
	case m[2] == "Min":
		return of + " wants at least so much of " + what + " in a job; it never starts as it is"
	case m[4] == "PerJob", m[4] == "PerNode", m[2] == "Max" && strings.HasPrefix(k[1], "Wall"):
		return of + " never gives one job so much of " + what + "; it never starts as it is"
	case m[2] == "Grp" && k[2] != "" && !strings.HasPrefix(k[2], "Run"):
		return of + " has used up its " + what + ", or has less of it left than the job may take"
	case m[2] == "Grp":
		return of + " has its limit of " + what + " reached by all of its jobs together"
	case m[4] == "PerAccount":
		return of + " has its limit of " + what + " reached by the jobs of this account"
	}
	return of + " has its limit of " + what + " reached by your jobs"
}

// inWords says what a reason of Slurm's means, and how Slurm calls it.
func inWords(reason string) string {
	head, rest, _ := strings.Cut(reason, ",")
	head = strings.TrimSuffix(strings.TrimSpace(head), ":")
	plain := reasons[head]
	if plain == "" {
		plain = reasons[strings.ReplaceAll(head, "_", " ")]
	}
	if plain == "" {
		plain = limited(head)
	}
	switch {
	case plain == "" && (strings.Contains(head, "Limit") || strings.Contains(head, "Max") || strings.Contains(head, "Grp")):
		plain = "a limit of the account or the QOS"
	case plain == "":
		return reason
	}
	if _, list, ok := strings.Cut(rest, "UnavailableNodes:"); ok && list != "" {
		plain += ": " + list
	}
	return plain + " (" + reason + ")"
}

// waits says why a job waits and how long about.
func (e entry) waits() string {
	s := "Slurm job " + e.id + " waits: " + inWords(e.reason)
	if e.start > 0 {
		s += "; Slurm expects to start it " + time.Unix(e.start, 0).Format("2006-01-02 15:04")
	}
	return s
}
