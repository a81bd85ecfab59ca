package slurm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"launcher/backends"
	"launcher/wire"
)

// oldest is the oldest version of Slurm that we work with.
const oldest = "20.11"

// uses are what of Slurm's the program has need of, with a place of each: options and words
// of commands, codes of formats, fields, variables, states.
type uses map[string]string

func (u uses) add(key, at string) {
	if u[key] == "" {
		u[key] = at
	}
}

var (
	slurmCommands = []string{"sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "sacct", "sacctmgr", "sdiag", "sprio", "sshare", "sreport", "sstat", "salloc", "sattach", "sbcast", "strigger"}

	optionRE   = regexp.MustCompile(`(?s)^(--?[A-Za-z][A-Za-z-]*)(=.*)?$`)
	codesRE    = regexp.MustCompile(`^%[A-Za-z]([|,: ]%[A-Za-z])*$`)
	subwordRE  = regexp.MustCompile(`^[a-z]+=?$`)
	variableRE = regexp.MustCompile(`\b(SLURMD?|SBATCH|SRUN|SQUEUE|SINFO|SACCT|SALLOC|SCANCEL)_[A-Z][A-Z_]*[A-Z]\b`)
)

// text takes what a string of the program says, in a call of cmd, "" = of none.
func (u uses) text(s, cmd, at string) {
	if m := optionRE.FindStringSubmatch(s); m != nil {
		if cmd == "" {
			cmd = "any"
		}
		u.add(cmd+" "+m[1], at)
		s = strings.TrimPrefix(m[2], "=") // --format=%i
	}
	if codesRE.MatchString(s) && slices.Contains(slurmCommands, cmd) {
		for _, c := range regexp.MustCompile(`%[A-Za-z]`).FindAllString(s, -1) {
			u.add(cmd+" "+c, at)
		}
	}
	if fields, ok := strings.CutPrefix(s, "format="); ok {
		for f := range strings.SplitSeq(fields, ",") {
			u.add("sacctmgr "+f, at)
		}
	} else if (cmd == "scontrol" || cmd == "sacctmgr") && s != cmd && subwordRE.MatchString(s) {
		u.add(cmd+" "+s, at)
	}
	for _, v := range variableRE.FindAllString(s, -1) {
		u.add("env "+v, at)
	}
}

// walker walks through a file; cmd is the command that the call around calls.
type walker struct {
	u      uses
	files  *token.FileSet
	consts map[string]string
	cmd    string
}

func stringOf(n ast.Node) (string, bool) {
	l, ok := n.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

func nameOf(n ast.Expr) string {
	switch n := n.(type) {
	case *ast.Ident:
		return n.Name
	case *ast.SelectorExpr:
		return n.Sel.Name
	}
	return ""
}

func (w walker) Visit(n ast.Node) ast.Visitor {
	if n == nil {
		return nil
	}
	p := w.files.Position(n.Pos())
	at := filepath.Base(p.Filename) + ":" + strconv.Itoa(p.Line)
	inside := func(list []ast.Expr) {
		for _, e := range list {
			if s, ok := stringOf(e); ok && slices.Contains(slurmCommands, s) {
				w.cmd = s
				return
			}
		}
	}
	states := func(list []ast.Expr) {
		for _, e := range list {
			if s, ok := stringOf(e); ok {
				w.u.add("state "+s, at)
			}
		}
	}
	switch n := n.(type) {
	case *ast.CallExpr:
		if s, ok := "", false; nameOf(n.Fun) == "opt" && len(n.Args) > 0 {
			if s, ok = stringOf(n.Args[0]); ok {
				w.u.add("any --"+s, at)
			}
		}
		inside(n.Args)
	case *ast.CompositeLit:
		inside(n.Elts)
	case *ast.Ident:
		if s := w.consts[n.Name]; s != "" && w.cmd != "" {
			w.u.text(s, w.cmd, at)
		}
	case *ast.IndexExpr:
		if s, ok := stringOf(n.Index); ok {
			switch nameOf(n.X) {
			case "conf":
				w.u.add("config "+s, at)
				return nil
			case "keys":
				w.u.add("partition "+s, at)
				return nil
			}
		}
	case *ast.SwitchStmt:
		if name := nameOf(n.Tag); name == "state" {
			for _, c := range n.Body.List {
				states(c.(*ast.CaseClause).List)
			}
		}
	case *ast.BinaryExpr:
		if nameOf(n.X) == "state" {
			states([]ast.Expr{n.Y})
		}
	case *ast.BasicLit:
		if s, ok := stringOf(n); ok {
			w.u.text(s, w.cmd, at)
		}
	}
	return w
}

// collect reads the program's files in a directory; all = not the variables only.
func (u uses) collect(t *testing.T, dir string, all bool) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	w := walker{u: u, files: token.NewFileSet(), consts: map[string]string{}}
	var parsed []*ast.File
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(w.files, p, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.ValueSpec); ok {
				for i, name := range s.Names {
					if i < len(s.Values) {
						if v, ok := stringOf(s.Values[i]); ok {
							w.consts[name.Name] = v
						}
					}
				}
			}
			return true
		})
	}
	for _, f := range parsed {
		if all {
			ast.Walk(w, f)
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := stringOf(orNil(n)); ok {
				u.text(strings.Join(variableRE.FindAllString(s, -1), " "), "", w.files.Position(n.Pos()).String())
			}
			return true
		})
	}
}

func orNil(n ast.Node) ast.Node {
	if n == nil {
		return &ast.BadExpr{}
	}
	return n
}

// lines takes what scripts ask of sbatch and srun.
func (u uses) lines(text, at string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		cmd, rest := "sbatch", strings.TrimPrefix(line, "#SBATCH ")
		if _, after, ok := strings.Cut(line, "srun "); ok {
			cmd, rest = "srun", after
		} else if !strings.HasPrefix(line, "#SBATCH ") {
			continue
		}
		for _, w := range strings.Fields(rest) {
			if strings.Contains(w, "/") && !strings.HasPrefix(w, "-") || w == "sh" || strings.Trim(w, "'") == "$launcher" {
				break // what srun runs has options of its own
			}
			short := regexp.MustCompile(`^-[A-Za-z]`).FindString(w)
			if m := optionRE.FindStringSubmatch(w); m != nil && strings.HasPrefix(w, "--") {
				u.add(cmd+" "+m[1], at)
			} else if short != "" {
				u.add(cmd+" "+short, at)
			}
		}
	}
}

// known reads the table: what, since which version, and why a newer one will do.
func known(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("testdata/versions.txt")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(f) < 3 {
			t.Errorf("not COMMAND WHAT SINCE: %q", line)
			continue
		}
		key := f[0] + " " + f[1]
		if table[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		table[key] = f[2:]
	}
	return table
}

// everything is a pool that asks for all that can be asked for.
var everything = backends.Options{"partition": "p", "account": "a", "qos": "q", "constraint": "c", "reservation": "r", "gres": "gpu:1", "time": []any{"1h", "8h"},
	"cpus": int64(2), "memory": "1GiB", "gpus_per_node": int64(1), "exclusive": true}

// TestVersions: all that we use of Slurm is in testdata/versions.txt, and what is younger than
// the oldest version that we promise has something in its place.
func TestVersions(t *testing.T) {
	u := uses{}
	u.collect(t, ".", true)
	for _, dir := range []string{"../../agent", "../../launcher", "../../wire"} {
		u.collect(t, dir, false)
	}
	shell, err := os.ReadFile("look.sh")
	if err != nil {
		t.Fatal(err)
	}
	u.text(strings.Join(variableRE.FindAllString(string(shell), -1), " "), "", "look.sh")
	q, faults := parse(everything)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	b := New(t.TempDir())
	jobs, err := b.jobs(q, backends.Request{Token: "n-1", Cluster: "c", Pool: "p", Binary: "/b", Nodes: []wire.NodeID{"p-0"}, Epochs: []wire.Epoch{1}})
	if err != nil {
		t.Fatal(err)
	}
	jobs[0].after = []string{"7"}
	for _, apart := range []bool{false, true} {
		q.Apart = apart
		text, err := q.script(jobs[0])
		if err != nil {
			t.Fatal(err)
		}
		u.lines(text, "the script")
	}
	text, err := Emit(everything, "c", 1, "/b", "/d")
	if err != nil {
		t.Fatal(err)
	}
	u.lines(text, "the script of --emit")
	words := strings.Join(q.options(1), " ")
	u.lines("#SBATCH "+words+"\nsrun "+words, "visit.go")

	table := known(t)
	anyOf := map[string]bool{}
	for k := range table {
		if _, what, ok := strings.Cut(k, " "); ok {
			anyOf[what] = true
		}
	}
	used := map[string]bool{}
	for key, at := range u {
		cmd, what, _ := strings.Cut(key, " ")
		entry := table[key]
		switch {
		case cmd == "any" && anyOf[what], entry == nil && table["own "+what] != nil:
			for _, c := range append(slurmCommands, "own") {
				used[c+" "+what] = true
			}
			continue
		case entry == nil:
			t.Errorf("%s: %q is not in testdata/versions.txt; say there since which version of Slurm it is there (its release notes, man pages)", at, key)
			continue
		}
		used[key] = true
		if older(oldest, entry[0]) && len(entry) == 1 {
			t.Errorf("%s: %q is there since Slurm %s only, and we promise %s; say what is there before that", at, key, entry[0], oldest)
		}
	}
	for key := range table {
		if !used[key] {
			t.Errorf("testdata/versions.txt: nothing uses %q", key)
		}
	}
	if len(used) < 100 {
		t.Errorf("only %d uses of Slurm were found", len(used))
	}
}

// older reports whether version a is before b.
func older(a, b string) bool {
	v := func(s string) int {
		y, m, _ := strings.Cut(s, ".")
		yi, _ := strconv.Atoi(y)
		mi, _ := strconv.Atoi(m)
		return yi*100 + mi
	}
	return v(a) < v(b)
}

// TestUsesAreFound: what a new line of the program would use of Slurm is seen.
func TestUsesAreFound(t *testing.T) {
	dir := t.TempDir()
	src := `package x
const fields = "%i|%Z"
func f() {
	run("squeue", "--me", "-o", fields)
	run("sacct", append([]string{"-X", "--format=%q"}, more...)...)
	opt("nice", "3")
	line("--delay-boot=%d", 1)
	_ = s.conf["PrologFlags"]
	_ = p.keys["LLN"]
	rows(2, "format=Name,Fairshare")
	get("SLURM_HINT")
	switch e.state { case "STOPPED": }
	if state == "RESIZING" {}
	run("scontrol", "show", "reservation")
}
`
	if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	u := uses{}
	u.collect(t, dir, true)
	for _, want := range []string{"squeue --me", "squeue -o", "squeue %i", "squeue %Z", "sacct -X", "sacct --format", "sacct %q", "any --nice", "any --delay-boot", "config PrologFlags",
		"partition LLN", "sacctmgr Fairshare", "env SLURM_HINT", "state STOPPED", "state RESIZING", "scontrol show", "scontrol reservation"} {
		if u[want] == "" {
			t.Errorf("%s is not found: %v", want, u)
		}
	}
}

// Versions print times, states, resources and settings differently; what differs is read
// in each form that their sources and man pages show.
func TestVersionsPrint(t *testing.T) {
	local := time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local).Unix()
	for s, want := range map[string]int64{"1772366400": 1772366400, "2026-03-01T12:00:00": local, "N/A": 0, "Unknown": 0, "NONE": 0, "(null)": 0, "": 0, "0": 0} {
		if got := stamp(s); got != want {
			t.Errorf("time %q is %d, wanted %d", s, got, want)
		}
	}
	for s, want := range map[string]bool{"idle": false, "mixed": false, "allocated": false, "idle~": false, "idle#": false, "mixed-": false, "planned": false, "idle+": false, "completing": false,
		"reserved": false, "maint": false, "idle^": false, "allocated!": false, "mixed*": true, "idle*": true, "down": true, "down*": true, "down~": true, "drained": true, "drained$": true,
		"draining": true, "draining@": true, "fail": true, "failing*": true, "future": true, "future^": true, "inval": true, "unknown": true, "unknown*": true} {
		if got := (siteNode{state: s}).away(); got != want {
			t.Errorf("a node that is %s takes no work: %v", s, got)
		}
	}
	for state, want := range map[string]string{"PENDING": "waits", "CONFIGURING": "waits", "REQUEUED": "waits", "EXPEDITING": "waits", "RUNNING": "", "COMPLETING": "", "STAGE_OUT": "",
		"SIGNALING": "", "SUSPENDED": "", "STOPPED": "", "RESIZING": "", "COMPLETED": "over", "OUT_OF_MEMORY": "over", "DEADLINE": "over", "TIMEOUT": "over", "REVOKED": "over", "PREEMPTED": "over"} {
		if got := map[bool]string{true: "waits"}[waiting(state)] + map[bool]string{true: "over"}[over(state)]; got != want {
			t.Errorf("a job that is %s: %q, wanted %q", state, got, want)
		}
	}
	for version, text := range map[string]string{
		"20.11.9": "Configuration data as of 2026-03-01T12:00:00\nAccountingStorageType   = accounting_storage/none\nJobDefaults             = (null)\nSelectType              = select/cons_tres\nSelectTypeParameters    = CR_CORE_MEMORY\nSLURM_VERSION           = 20.11.9\nSrunPortRange           = 60001-63000\n\nSlurmctld(primary) at head is UP\n",
		"23.11.4": "Configuration data as of 2026-03-01T12:00:00\nAccountingStorageType   = accounting_storage/none\nJobDefaults             = DefCpuPerGPU=4,DefMemPerGPU=8000\nPreemptParameters       = (null)\nSelectType              = select/cons_tres\nSelectTypeParameters    = CR_CORE_MEMORY\nSLURM_VERSION           = 23.11.4\nSrunPortRange           = 60001-63000\n\nCgroup Support Configuration:\nCgroupPlugin            = autodetect\n\nSlurmctld(primary) at head is UP\n",
	} {
		s := site{conf: parseConfig(text)}
		if s.conf["SLURM_VERSION"] != version || !s.tres() || s.srunPorts() != "60001-63000" || !s.consumes(&partition{keys: map[string]string{"SelectTypeParameters": "NONE"}}) {
			t.Errorf("settings of %s: %v", version, s.conf)
		}
		if want := map[string]string{"23.11.4": "8000 MB per gpu"}[version]; s.defMem(&partition{}) != want {
			t.Errorf("memory by default of %s: %q, wanted %q", version, s.defMem(&partition{}), want)
		}
	}
	const part = "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=00:30:00 DisableRootJobs=NO %s GraceTime=0 Hidden=NO MaxNodes=8 MaxTime=2-00:00:00 MinNodes=1 LLN=NO MaxCPUsPerNode=UNLIMITED%s Nodes=n[1-2] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=%s OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=128 TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerCPU=2000 MaxMemPerNode=UNLIMITED%s\n"
	for version, v := range map[string][4]string{
		"20.11": {"ExclusiveUser=NO", "", "EXCLUSIVE", ""},
		"22.05": {"ExclusiveUser=YES", "", "NO", " TRES=cpu=128,mem=8000M,node=2,billing=128"},
		"24.05": {"ExclusiveUser=NO ExclusiveTopo=NO", " MaxCPUsPerSocket=UNLIMITED", "EXCLUSIVE", " TRES=cpu=128,mem=8000M,node=2,billing=128"},
		"26.05": {"Exclusive=NODE", " MaxCPUsPerSocket=UNLIMITED", "NO", " TRES=cpu=128,mem=8000M,node=2,billing=128,gres/gpu=8"},
	} {
		text := part
		for _, w := range v {
			text = strings.Replace(text, "%s", w, 1)
		}
		s := site{parts: parsePartitions(text)}
		p := s.partition("")
		if p == nil || p.name != "gpu" || span(p.keys["MaxTime"]) != 48*time.Hour || number(p.keys["MaxNodes"]) != 8 || !p.whole() || s.defMem(p) != "2000 MB per cpu" {
			t.Fatalf("partition of %s: %+v", version, p)
		}
		s.nodes("n1|gpu|64|4000|gpu:a100:4(S:0-1)|mixed-\nn2|gpu|64+|4000+|gpu:a100:4|idle~\nn2|other|64|4000||idle\n")
		if cpus, mem, gres := p.least(); len(p.nodes) != 2 || cpus != 64 || mem != 4000 || s.refuses(p) != "" {
			t.Errorf("nodes of %s: %d %d %s", version, cpus, mem, gres)
		}
	}
	if p := parsePartitions(strings.Replace(part, "%s", "Exclusive=NO", 1)); p[0].whole() {
		t.Error("nodes are given whole though Exclusive=NO")
	}
}
