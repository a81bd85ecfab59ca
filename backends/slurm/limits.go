package slurm

import (
	"cmp"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"launcher/wire"
)

// limits are what accounting has of an association, an account or a QOS, by sacctmgr's
// names of fields; "" = none.
type limits map[string]string

const (
	assocFields = "format=Account,ParentName,Partition,User,QOS,DefaultQOS,MaxWall,MaxTRES,MaxTRESMins,MaxJobs,MaxSubmit,GrpTRES,GrpTRESMins,GrpTRESRunMins,GrpJobs,GrpSubmit,GrpWall"
	qosFields   = "format=Name,Preempt,PreemptMode,GraceTime,MinTRES,MaxWall,MaxTRES,MaxTRESMins,MaxTRESPU,MaxTRESPA,MaxJobsPU,MaxJobsPA,MaxSubmitPU,MaxSubmitPA,GrpTRES,GrpTRESMins,GrpTRESRunMins,GrpJobs,GrpSubmit,GrpWall"
)

// ownQOS is that of a job which names none.
func (l limits) ownQOS() string {
	if l["DefaultQOS"] == "" && !strings.Contains(l["QOS"], ",") {
		return l["QOS"]
	}
	return cmp.Or(l["DefaultQOS"], "normal")
}

// readLimits asks the accounting of this cluster, which may serve others too. Sites may keep
// it to themselves: then none is known.
func (s *site) readLimits(ask func(string, ...string) (string, error)) {
	u, err := user.Current()
	if err != nil {
		return
	}
	rows := func(fields string, args ...string) (out []limits) {
		text, err := ask("sacctmgr", append(append([]string{"-n", "-P", "show"}, args...), fields)...)
		if err != nil {
			return nil
		}
		_, list, _ := strings.Cut(fields, "=")
		names := strings.Split(list, ",")
		for line := range strings.Lines(text) {
			f := strings.Split(strings.TrimRight(line, "\n"), "|")
			if len(f) != len(names) {
				continue
			}
			l := limits{}
			for i, name := range names {
				l[name] = f[i]
			}
			out = append(out, l)
		}
		return out
	}
	here := "cluster=" + s.conf["ClusterName"]
	s.limits = rows(assocFields, "assoc", here, "user="+u.Username)
	for _, l := range rows("format=DefaultAccount", "user", u.Username, "withassoc", here) {
		s.account = l["DefaultAccount"]
	}
	s.qos, s.above = map[string]limits{}, map[string]limits{}
	for _, l := range rows(qosFields, "qos") {
		s.qos[l["Name"]] = l
	}
	for next := s.accounts(); len(next) > 0; { // what is set on an account holds for all below it
		for _, a := range next {
			s.above[a] = limits{"Account": a} // should it not be shown
		}
		for _, l := range rows(assocFields, "assoc", here, "accounts="+strings.Join(next, ","), "user=") {
			s.above[l["Account"]] = l
		}
		next = nil
		for _, l := range s.above {
			if p := l["ParentName"]; p != "" && s.above[p] == nil && !slices.Contains(next, p) {
				next = append(next, p)
			}
		}
		slices.Sort(next)
	}
}

// accounts are those of this user.
func (s *site) accounts() (names []string) {
	for _, l := range s.limits {
		if a := l["Account"]; a != "" && !slices.Contains(names, a) {
			names = append(names, a)
		}
	}
	slices.Sort(names)
	return names
}

// of is the user's association with an account in a partition, which may have its own.
func (s *site) of(account, partition string) limits {
	for _, p := range []string{partition, ""} {
		for _, l := range s.limits {
			if l["Account"] == account && l["Partition"] == p {
				return l
			}
		}
	}
	return nil
}

// preempts names the QOS whose jobs end those of the one named.
func (s *site) preempts(name string) string {
	var by []string
	for _, q := range s.qos {
		if contains(q["Preempt"], name) {
			by = append(by, q["Name"])
		}
	}
	slices.Sort(by)
	return strings.Join(by, ", ")
}

// mine are the limits that are of the pool's account and partition.
func (x *examination) mine() limits {
	account := cmp.Or(x.q.Account, x.s.account)
	if all := x.s.accounts(); account == "" && len(all) > 0 {
		account = all[0]
	}
	return x.s.of(account, x.p.name)
}

// account compares with what the user's accounts and the QOS allow.
func (x *examination) account() {
	if x.s.conf["AccountingStorageType"] != "accounting_storage/slurmdbd" {
		if x.q.Account != "" || x.q.QOS != "" {
			x.tell("note", "leave account and qos out", "this Slurm keeps no accounts")
		}
		return
	}
	if len(x.s.limits) == 0 {
		x.tell("note", "ask who runs the site", "Slurm's accounting does not say which accounts are yours")
		return
	}
	l := x.mine()
	if l == nil {
		x.tell("error", "account = one of "+strings.Join(x.s.accounts(), ", "), "account %q is not yours in partition %s", cmp.Or(x.q.Account, x.s.account), x.p.name)
		return
	}
	name := l["Account"]
	x.tell("ok", "", "accounts %s are yours; with %s QOS %s", strings.Join(x.s.accounts(), ", "), name, l["QOS"])
	if !x.p.takes("Accounts", name) {
		x.tell("error", "account = one of "+strings.Join(x.s.usable(x.p), ", "), "partition %s is not for account %s", x.p.name, name)
	}
	qos := cmp.Or(x.q.QOS, l.ownQOS())
	if x.q.QOS != "" && !contains(l["QOS"], qos) {
		x.tell("error", "qos = one of "+l["QOS"], "QOS %s may not be used with account %s", qos, name)
	} else if !x.p.takes("Qos", qos) {
		x.tell("error", "qos = one of "+strings.Join(x.p.those("Qos", strings.Split(l["QOS"], ",")), ", "), "partition %s is not for QOS %s", x.p.name, qos)
	}
	x.bounds(l, qos)
}

// takes reports whether the partition takes jobs of an account or a QOS.
func (p *partition) takes(what, name string) bool {
	allowed, denied := p.keys["AllowAccounts"], p.keys["DenyAccounts"]
	if what == "Qos" {
		allowed, denied = p.keys["AllowQos"], p.keys["DenyQos"]
	}
	return (allowed == "" || allowed == "ALL" || contains(allowed, name)) && !contains(denied, name)
}

// those are the ones that the partition takes.
func (p *partition) those(what string, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !p.takes(what, n) })
}

// usable are this user's accounts by which jobs may run in a partition.
func (s *site) usable(p *partition) []string {
	return slices.DeleteFunc(p.those("Accounts", s.accounts()), func(a string) bool {
		l := s.of(a, p.name)
		return l == nil || len(p.those("Qos", strings.Split(l["QOS"], ","))) == 0
	})
}

// A bound is over one job, over what each user has or each account, or over all together.
const (
	overJob = iota
	overUser
	overAccount
	overAll
)

// bounds are what accounting calls its limits: over what, and in which of the forms that
// follow: things that jobs hold, the same times minutes, numbers of jobs that run or that are
// in the queue, a time. An association's is named where it is not called as a QOS's.
var bounds = []struct {
	key, assoc string
	over       int
	form       string
}{
	{"MinTRES", "", overJob, "least"},
	{"MaxWall", "", overJob, "time"},
	{"MaxTRES", "", overJob, "things"},
	{"MaxTRESMins", "", overJob, "minutes"},
	{"MaxTRESPU", "", overUser, "things"},
	{"MaxTRESPA", "", overAccount, "things"},
	{"MaxJobsPU", "MaxJobs", overUser, "running"},
	{"MaxJobsPA", "", overAccount, "running"},
	{"MaxSubmitPU", "MaxSubmit", overUser, "queued"},
	{"MaxSubmitPA", "", overAccount, "queued"},
	{"GrpTRES", "", overAll, "things"},
	{"GrpTRESRunMins", "", overAll, "minutes"},
	{"GrpJobs", "", overAll, "running"},
	{"GrpSubmit", "", overAll, "queued"},
	{"GrpTRESMins", "", overAll, "budget"},
	{"GrpWall", "", overAll, "budget"},
}

// bounds goes through what holds for jobs of an association and a QOS. Of what several set
// the first counts: the partition's QOS, the job's, the association; accounts above it count
// for what all have together, each.
func (x *examination) bounds(l limits, qos string) {
	if e := x.s.conf["AccountingStorageEnforce"]; e != "" && !contains(e, "limits") && !contains(e, "safe") {
		return // written down, and kept to by nobody
	}
	name := l["Account"]
	rules := []rule{{of: "QOS " + x.p.keys["QoS"], limits: x.s.qos[x.p.keys["QoS"]], qos: true}, {of: "QOS " + qos, limits: x.s.qos[qos], qos: true},
		{of: "account " + name, limits: l, own: true}}
	for a := x.s.above[name]; a != nil; a = x.s.above[a["ParentName"]] {
		rules = append(rules, rule{of: "account " + a["Account"], limits: a})
	}
	set := map[string]bool{}
	for _, r := range rules {
		for _, b := range bounds {
			key := b.key
			if !r.qos {
				key = cmp.Or(b.assoc, b.key)
			}
			value := r.limits[key]
			if value == "" || !r.qos && !r.own && b.over != overAll {
				continue // an account's for one job are its users' own, as sacctmgr shows them
			}
			r.key = key
			for one := range strings.SplitSeq(value, ",") {
				kind, v, ok := strings.Cut(one, "=")
				if !ok {
					kind, v = "", one
				}
				if id := b.key + " " + kind; !set[id] {
					set[id] = r.qos
					x.bound(r, b.over, b.form, kind, v)
				}
			}
		}
	}
}

// rule is whose limits are looked at.
type rule struct {
	of       string
	key      string // the limit's name
	limits   limits
	qos, own bool
}

// whose says over what a bound is.
func (r rule) whose(over int) string {
	switch {
	case over == overJob:
		return "a job of " + r.of
	case over == overUser && r.qos:
		return "each user of " + r.of
	case over == overAccount:
		return "each account with " + r.of
	case over == overUser, r.own:
		return "your jobs of " + r.of + " together"
	}
	return "all jobs of " + r.of + " together"
}

// bound compares one limit with what the pool may ask for.
func (x *examination) bound(r rule, over int, form, kind, v string) {
	who, jobs := r.whose(over), max(x.Max, 1)
	perJob := jobs
	if x.q.PerJob > 0 {
		perJob = min(jobs, x.q.PerJob)
	}
	nodes, keep := jobs, func(n int) (string, func()) { return fmt.Sprintf("max = %d", n), func() { x.Max = n } }
	if over == overJob {
		nodes, keep = perJob, func(n int) (string, func()) {
			return fmt.Sprintf("nodes_per_job = %d", n), func() { x.q.PerJob = n }
		}
	}
	others := map[bool]string{true: ", those of others too"}[over == overAll && !r.own || over == overAccount]
	n := int64(number(v))
	switch form {
	case "time":
		// Slurm holds the longer of two times against it.
		if d := span(v); d > 0 && x.q.Time > d {
			x.must(func() { x.q.Time, x.q.TimeMin = d, min(x.q.TimeMin, d) }, fmt.Sprintf("time = %q", minutes(d)), "%s has at most %s (%s), and the pool asks for %s", who, maxTime(d), r.key, maxTime(x.q.Time))
		}
	case "running", "queued":
		where := "at a time"
		if form == "queued" {
			where = "in the queue"
		}
		asked := (jobs + perJob - 1) / perJob
		switch {
		case n == 0:
			x.tell("error", "ask who runs the site, or name another account or qos", "%s may be none %s (%s): nothing starts", who, where, r.key)
		case form == "queued" && n < 4:
			x.tell("note", "", "%s may be %s in the queue (%s): the next job before the end of this one needs two", who, plural(int(n), "job"), r.key)
		case int64(asked) > n:
			per := (jobs + int(n) - 1) / int(n)
			x.should(func() { x.Max = int(n) * perJob }, fmt.Sprintf("nodes_per_job = %d or more, or max = %d", per, int(n)*perJob), "%s may be %s %s (%s)%s, and %d nodes are %d of them", who, plural(int(n), "job"), where, r.key, others, jobs, asked)
		case x.q.PerJob == 0 && int64(jobs) > n:
			x.tell("note", "", "%s may be %s %s (%s)%s: where work asks for its %d nodes one after another, those beyond that wait", who, plural(int(n), "job"), where, r.key, others, jobs)
		}
	case "budget":
		x.tell("note", "", "%s have %s in all (%s), and what they have used counts: when it is used up nothing starts", who, amount(kind, v, true), r.key)
	case "least":
		if n = quantity(kind, v); kind == "node" && n > 1 && n <= int64(jobs) {
			x.tell("warning", "", "%s has at least %d nodes (%s): work on fewer waits", who, n, r.key)
		} else if n > x.each(kind) {
			x.must(nil, fmt.Sprintf("ask for %s, or name another qos", amount(kind, v, false)), "%s has at least %s (%s), and the pool asks for less", who, amount(kind, v, false), r.key)
		}
	case "things", "minutes":
		n = quantity(kind, v)
		each, times := x.each(kind), ""
		if each == 0 {
			return
		}
		if form == "minutes" {
			t := int64(x.time() / time.Minute)
			if t == 0 {
				return
			}
			each, times = each*t, fmt.Sprintf(" for %s", maxTime(x.time()))
		}
		asks := amount(kind, strconv.FormatInt(each, 10), form == "minutes")
		switch fit := int(n / each); {
		case fit == 0 && form == "minutes":
			d := time.Duration(n/x.each(kind)) * time.Minute
			x.must(func() { x.q.Time, x.q.TimeMin = max(d, time.Minute), min(x.q.TimeMin, d) }, fmt.Sprintf("time = %q, or less of each node", minutes(d)), "%s may have %s (%s), and one node%s takes %s: none ever starts", who, amount(kind, v, true), r.key, times, asks)
		case fit == 0:
			fix, do := x.ask(kind, n)
			x.must(do, fix, "%s may have %s (%s), and each node asks for %s: none ever starts", who, amount(kind, v, false), r.key, asks)
		case fit < nodes:
			fix, do := keep(fit)
			x.should(do, fix, "%s may have %s (%s)%s: that is %s of the pool's%s, and it may ask for %d", who, amount(kind, v, form == "minutes"), r.key, others, plural(fit, "node"), times, nodes)
		}
	}
}

// mend is why the pool has to ask for less, and has it do so.
type mend struct {
	why string
	do  func()
}

// must tells of what never works as it is, should of what hurts; do is the fix, for a spec
// that is being made.
func (x *examination) must(do func(), fix, format string, args ...any) {
	x.tell("error", fix, format, args...)
	if do != nil { // before others: what a node asks for decides how many there may be
		x.mends = append([]mend{{fmt.Sprintf(format, args...), do}}, x.mends...)
	}
}

func (x *examination) should(do func(), fix, format string, args ...any) {
	x.tell("warning", fix, format, args...)
	x.mends = append(x.mends, mend{fmt.Sprintf(format, args...), do})
}

// time is that of a job, 0 = not known.
func (x *examination) time() time.Duration {
	return cmp.Or(x.q.Time, span(x.p.keys["DefaultTime"]), span(x.p.keys["MaxTime"]))
}

// each is what one node of the pool takes of what accounting counts; 0 = nothing, or not known.
func (x *examination) each(kind string) int64 {
	cpus, _, _ := x.p.least()
	model, gpus := gpusOf(x.q.Gres)
	gpus = max(gpus, x.q.GPUs)
	switch kind {
	case "node":
		return 1
	case "cpu":
		if x.q.Exclusive || x.p.whole() {
			return int64(cpus)
		}
		return int64(max(x.q.CPUs, 1))
	case "mem":
		return x.q.Memory >> 20
	case "gres/gpu", "gres/gpu:" + model:
		return int64(gpus)
	}
	return 0
}

// ask says how a node asks for so much, and has it do so.
func (x *examination) ask(kind string, n int64) (fix string, do func()) {
	switch {
	case kind == "cpu" && n > 0 && !x.q.Exclusive && !x.p.whole():
		return fmt.Sprintf("cpus = %d", n), func() { x.q.CPUs = int(n) }
	case kind == "mem" && n > 0:
		return fmt.Sprintf(`memory = "%dMiB"`, n), func() { x.q.Memory = n << 20 }
	case strings.HasPrefix(kind, "gres/gpu"):
		model, _ := gpusOf(x.q.Gres)
		if n == 0 {
			return "leave the GPUs out, or name another account or qos", func() { x.q.Gres, x.q.GPUs = "", 0 }
		}
		return fmt.Sprintf("gres = %q", gresOf(model, int(n))), func() { x.q.Gres, x.q.GPUs = gresOf(model, int(n)), 0 }
	}
	return "name another account or qos", nil
}

// quantity reads a number as sacctmgr prints it, of memory in MiB.
func quantity(kind, v string) int64 {
	shift := 0
	if kind == "mem" {
		shift = 10 * max(strings.IndexAny("MGTP", v[max(len(v)-1, 0):]), 0)
		v = strings.TrimRight(v, "MGTP")
	}
	n, _ := strconv.ParseInt(v, 10, 64)
	return n << shift
}

// amount says how much that is.
func amount(kind, v string, minutes bool) string {
	n := quantity(kind, v)
	word := map[string]string{"cpu": "core", "node": "node", "gres/gpu": "GPU"}[kind]
	if model, ok := strings.CutPrefix(kind, "gres/gpu:"); ok {
		word = model + " GPU"
	}
	switch {
	case kind == "":
		return maxTime(span(v)) + " of time"
	case kind == "mem" && minutes:
		return wire.Bytes(n<<20) + " of memory times minutes"
	case kind == "mem":
		return wire.Bytes(n<<20) + " of memory"
	case word == "":
		return fmt.Sprintf("%d of %s", n, kind)
	case minutes:
		return fmt.Sprintf("%d %s minutes", n, word)
	}
	return plural(int(n), word)
}
