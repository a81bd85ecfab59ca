package slurm

import (
	"context"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// site is what a Slurm cluster says of itself to its users.
type site struct {
	version string
	conf    map[string]string
	parts   []partition
	limits  []limits          // of this user's associations; none where there is no accounting
	account string            // of a job that names none
	above   map[string]limits // of accounts
	qos     map[string]limits
}

// partition is one as scontrol shows it, with what its nodes have.
type partition struct {
	name   string
	keys   map[string]string
	nodes  []siteNode
	usable string // why not; "" = it is
}

// siteNode is a kind of node as sinfo shows it.
type siteNode struct {
	name, gres, state string
	cpus              int
	memory            int64 // MiB
}

// readSite asks Slurm, with three to five of its commands.
func (b *Backend) readSite(ctx context.Context) (s site, err error) {
	ask := func(name string, args ...string) (string, error) {
		return b.cli.run(ctx, environment(environ(), nil), "", name, args...)
	}
	out, err := ask("scontrol", "show", "config")
	if err != nil {
		return s, err
	}
	s.conf = parseConfig(out)
	s.version = s.conf["SLURM_VERSION"]
	if out, err = ask("scontrol", "-o", "show", "partition"); err != nil {
		return s, err
	}
	s.parts = parsePartitions(out)
	if out, err = ask("sinfo", "-h", "-N", "-o", "%N|%R|%c|%m|%G|%T"); err != nil {
		return s, err
	}
	s.nodes(out)
	if s.conf["AccountingStorageType"] == "accounting_storage/slurmdbd" {
		s.readLimits(ask)
	}
	for i := range s.parts {
		s.parts[i].usable = s.refuses(&s.parts[i])
	}
	return s, nil
}

// parseConfig reads what scontrol shows of slurm.conf, Key = Value in columns.
func parseConfig(text string) map[string]string {
	conf := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, "="); ok {
			conf[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return conf
}

// parsePartitions reads those that scontrol shows, one in a line of Key=Value.
func parsePartitions(text string) (parts []partition) {
	for line := range strings.Lines(text) {
		keys := map[string]string{}
		for w := range strings.FieldsSeq(line) {
			if k, v, ok := strings.Cut(w, "="); ok {
				keys[k] = v
			}
		}
		if keys["PartitionName"] != "" {
			parts = append(parts, partition{name: keys["PartitionName"], keys: keys})
		}
	}
	return parts
}

// nodes puts those that sinfo shows into their partitions.
func (s *site) nodes(text string) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 6 {
			continue
		}
		n := siteNode{name: f[0], gres: f[4], state: f[5]}
		n.cpus, _ = strconv.Atoi(strings.TrimSuffix(f[2], "+"))
		n.memory, _ = strconv.ParseInt(strings.TrimSuffix(f[3], "+"), 10, 64)
		for i := range s.parts {
			if s.parts[i].name == f[1] {
				s.parts[i].nodes = append(s.parts[i].nodes, n)
			}
		}
	}
}

// away reports whether a node takes no work, by its state as sinfo writes it; a character
// that may follow speaks of its power, its next boot or, *, of its silence.
func (n siteNode) away() bool {
	switch strings.TrimRight(n.state, "*~#!%$@^+-") {
	case "down", "drained", "draining", "fail", "failing", "future", "inval", "unknown":
		return true
	}
	return strings.HasSuffix(n.state, "*")
}

// whole reports whether the partition's nodes are given to one job or user each. From
// 26.05 on it is said in one word.
func (p *partition) whole() bool {
	switch p.keys["Exclusive"] {
	case "NODE", "TOPO", "USER":
		return true
	}
	return p.keys["OverSubscribe"] == "EXCLUSIVE" || p.keys["ExclusiveUser"] == "YES"
}

// srunPorts are those that srun keeps to, "" = any. Where a site names some a firewall lets
// those through.
func (s *site) srunPorts() string {
	lo, hi, ok := strings.Cut(s.conf["SrunPortRange"], "-")
	if !ok || number(lo) == 0 || number(hi) < number(lo) {
		return ""
	}
	return lo + "-" + hi
}

// refuses says why a partition takes no job of ours, as far as can be seen.
func (s *site) refuses(p *partition) string {
	switch {
	case p.keys["State"] != "UP":
		return "it is " + strings.ToLower(p.keys["State"])
	case len(p.nodes) == 0:
		return "it has no nodes"
	case p.keys["RootOnly"] == "YES":
		return "only root may use it"
	case p.keys["ReqResv"] == "YES":
		return "it takes jobs with a reservation only"
	}
	if len(s.limits) > 0 && len(s.usable(p)) == 0 {
		var say []string
		for _, k := range []string{"AllowAccounts", "DenyAccounts", "AllowQos", "DenyQos"} {
			if v := p.keys[k]; v != "" && v != "ALL" {
				say = append(say, k+"="+v)
			}
		}
		return "none of your accounts and QOS may use it (" + strings.Join(say, ", ") + ")"
	}
	if allowed := p.keys["AllowGroups"]; allowed != "ALL" && allowed != "" && !inGroup(allowed) {
		return "it is for groups " + allowed
	}
	return ""
}

func inGroup(allowed string) bool {
	u, err := user.Current()
	if err != nil {
		return true // Slurm will say
	}
	ids, err := u.GroupIds()
	if err != nil {
		return true
	}
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil && contains(allowed, g.Name) {
			return true
		}
	}
	return false
}

func contains(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

func (s *site) partition(name string) *partition {
	for i := range s.parts {
		if p := &s.parts[i]; name == p.name || name == "" && p.keys["Default"] == "YES" {
			return p
		}
	}
	return nil
}

func (s *site) names() string {
	var out []string
	for _, p := range s.parts {
		out = append(out, p.name)
	}
	return strings.Join(out, ", ")
}

// consumes reports whether memory is shared out among jobs, in this partition.
func (s *site) consumes(p *partition) bool {
	t := p.keys["SelectTypeParameters"]
	if t == "" || t == "NONE" {
		t = s.conf["SelectTypeParameters"]
	}
	return strings.Contains(strings.ToUpper(t), "MEMORY")
}

// tres reports whether jobs may ask for GPUs by --gpus-per-node.
func (s *site) tres() bool { return s.conf["SelectType"] == "select/cons_tres" }

// defMem is what a job gets that asks for no memory, in words; "" = all of a node.
func (s *site) defMem(p *partition) string {
	for _, k := range []string{"DefMemPerCPU", "DefMemPerNode", "DefMemPerGPU"} {
		for _, v := range []string{p.keys[k], jobDefault(p.keys["JobDefaults"], k), s.conf[k], jobDefault(s.conf["JobDefaults"], k)} {
			if v != "" && v != "UNLIMITED" && v != "0" {
				return v + " MB per " + strings.ToLower(strings.TrimPrefix(k, "DefMemPer"))
			}
		}
	}
	return ""
}

// jobDefault reads one of a list such as DefCpuPerGPU=4,DefMemPerGPU=8000.
func jobDefault(list, key string) string {
	for w := range strings.SplitSeq(list, ",") {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			return v
		}
	}
	return ""
}

// number reads a limit that may be UNLIMITED; 0 = none.
func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// span reads a time as Slurm writes it, D-HH:MM:SS and shorter; 0 = no limit.
func span(s string) time.Duration {
	days, rest, ok := strings.Cut(s, "-")
	d := 0
	if ok {
		d, _ = strconv.Atoi(days)
	} else {
		rest = s
	}
	f := strings.Split(rest, ":")
	v := make([]int, 3)
	for i := range min(len(f), 3) {
		n, err := strconv.Atoi(f[i])
		if err != nil {
			return 0
		}
		v[i] = n
	}
	if len(f) == 2 && !ok { // MM:SS
		v = []int{0, v[0], v[1]}
	} else if len(f) == 1 && !ok { // MM
		v = []int{0, v[0], 0}
	}
	return time.Duration(((d*24+v[0])*60+v[1])*60+v[2]) * time.Second
}

// tooOld is a version before the first that has --overlap.
func tooOld(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	m, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (a < 20 || a == 20 && m < 11)
}

// gpusOf reads gpu:8, gpu:a100:8(S:0-1) and lists of them: type and count of GPUs.
func gpusOf(gres string) (kind string, n int) {
	depth := 0
	for part := range strings.FieldsFuncSeq(gres, func(r rune) bool {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		}
		return r == ',' && depth == 0
	}) {
		part, _, _ = strings.Cut(part, "(")
		f := strings.Split(part, ":")
		if f[0] != "gpu" || len(f) < 2 {
			continue
		}
		k, err := strconv.Atoi(f[len(f)-1])
		if err != nil {
			continue
		}
		if n += k; len(f) == 3 {
			kind = f[1]
		}
	}
	return kind, n
}
