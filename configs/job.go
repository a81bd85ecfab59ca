package configs

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// Job is a job or sweep file with its defaults filled in and its paths absolute.
type Job struct {
	Path    string
	Name    string
	Kind    wire.Kind
	Command []string
	Dir     string // absolute workdir
	Env     []string
	Cluster string // name of the cluster to use; "" = the usual choice
	On      string // absolute path of a cluster spec: up (or attach), run, down; "" = none

	RetryFailed int
	Outputs     []string
	Priority    int
	Limits      wire.Limits

	Resources   wire.Resources
	TimeLimit   time.Duration
	TimeRequest time.Duration

	Array *Array
	Train *wire.TrainSpec
	Sweep *wire.SweepSpec

	RanksPerNode uint32
}

// Array is [array]: one of the two is set.
type Array struct {
	Ranges   []wire.Range
	EachLine string // absolute path of a file whose lines are the elements
}

// DefaultMaxRestarts is how often a gang is restarted when nothing else is asked for.
const DefaultMaxRestarts = 3

// DefaultKeep is how many committed checkpoints are kept.
const DefaultKeep = 2

// LoadJob reads and checks a job file: TOML, or, when its name ends in .yaml or .yml, a
// W&B sweep file. Errors are as those of LoadCluster.
func LoadJob(path string) (*Job, error) {
	text, err := readFile(path, "the job file")
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, unreadable(path, err, "the job file")
	}
	if ext := strings.ToLower(filepath.Ext(path)); ext == ".yaml" || ext == ".yml" {
		return ParseWandb(path, abs, text)
	}
	return ParseJob(path, abs, text)
}

// LoadSweep is LoadJob for a file that must be a sweep.
func LoadSweep(path string) (*Job, error) {
	j, err := LoadJob(path)
	if err != nil {
		return nil, err
	}
	if j.Kind != wire.KindSweep {
		return nil, mistaken(path, `it is a job of kind "`+string(j.Kind)+`", not a sweep; hand it to launcher submit`)
	}
	return j, nil
}

// ParseJob checks the text of a job file. name is used in messages; paths in the text
// are taken relative to the directory of abs.
func ParseJob(name, abs string, text []byte) (*Job, error) {
	root, faults := parseTOML(name, text)
	if faults != nil {
		return nil, faults.asError()
	}
	f, dir := &file{name: name}, filepath.Dir(abs)
	t, err := f.root(root)
	if err != nil {
		return nil, err
	}
	if t.obj.m["pool"] != nil && t.obj.m["command"] == nil && t.obj.m["sweep"] == nil {
		return nil, mistaken(name, "it is a cluster spec, not a job file; hand it to launcher up")
	}
	t.version()
	j := &Job{Path: abs}
	j.Kind = t.kind()
	j.common(t, dir)

	array, train, sweep, mapping := t.table("array"), t.table("train"), t.table("sweep"), t.table("map")
	for _, s := range []struct {
		t    *table
		kind wire.Kind
	}{{array, wire.KindArray}, {train, wire.KindTrain}, {sweep, wire.KindSweep}, {mapping, wire.KindMap}} {
		if s.t.present && s.kind != j.Kind {
			t.fault(s.t.key, `the table belongs to kind = %q, but kind is %q; take one of them out`, s.kind, j.Kind)
		}
		if !s.t.present && s.kind == j.Kind {
			t.fault(string(s.kind), "missing; kind = %q needs a table [%s]", s.kind, s.kind)
		}
	}
	switch {
	case array.present:
		j.readArray(array, dir)
	case train.present:
		j.readTrain(train, dir)
	case sweep.present:
		j.Sweep = readSweep(sweep)
		j.sweepCommand(t, sweep)
	case mapping.present:
		j.readMap(t, mapping)
	}
	if len(j.Command) == 0 && !t.has("command") && j.Kind != wire.KindSweep && j.Kind != wire.KindMap {
		t.fault("command", `missing; give the program and its arguments, such as ["python", "train.py"]`)
	}
	t.done()
	if err := f.faults.asError(); err != nil {
		return nil, err
	}
	return j, nil
}

// kind is the job's kind: as it says, or by which table it has.
func (t *table) kind() wire.Kind {
	def := "run"
	for _, k := range []string{"array", "train", "sweep", "map"} {
		if t.obj.m[k] != nil {
			def = k
		}
	}
	return wire.Kind(t.oneOf("kind", def, "run", "array", "train", "sweep", "map"))
}

// common reads what all kinds share.
func (j *Job) common(t *table, dir string) {
	base := strings.TrimSuffix(filepath.Base(j.Path), filepath.Ext(j.Path))
	j.Name = t.str("name", base)
	if t.has("name") && !t.bad["name"] {
		if err := CheckName(j.Name); err != nil {
			t.fault("name", "%s", err)
		}
	}
	j.Command = t.strings("command", 1)
	if len(j.Command) > 0 && j.Command[0] == "" {
		t.fault("command", "its first element, the program, is empty")
	}
	j.Dir = resolve(dir, t.str("workdir", "."))
	if st, err := os.Stat(j.Dir); !t.bad["workdir"] && (err != nil || !st.IsDir()) {
		t.fault("workdir", "there is no directory %s; give one relative to this file", j.Dir)
	}
	j.Env = t.environment("env")
	j.Cluster = t.str("cluster", "")
	if j.Cluster != "" && !t.bad["cluster"] {
		if err := CheckName(j.Cluster); err != nil {
			t.fault("cluster", "%s", err)
		}
	}
	if on := t.str("on", ""); on != "" {
		j.On = resolve(dir, on)
		if j.Cluster != "" {
			t.fault("on", "cluster says where to run already; give one of the two")
		}
	}
	j.RetryFailed = int(t.integer("retry_failed", 0, 0, 1000))
	j.Outputs = t.strings("outputs", 0)
	for _, g := range j.Outputs {
		if _, err := path.Match(g, ""); err != nil || g == "" || filepath.IsAbs(g) || strings.HasPrefix(path.Clean(g), "..") {
			t.fault("outputs", `%q is not a pattern for files in the workdir; give such as "out/*.csv"`, g)
		}
	}
	j.Priority = int(t.integer("priority", 0, -1000, 1000))

	rt := t.table("resources")
	j.TimeLimit = rt.duration("time", 0, time.Second, 365*24*time.Hour)
	j.TimeRequest = rt.duration("time_request", 0, time.Second, 365*24*time.Hour)
	if j.TimeLimit > 0 && j.TimeRequest > j.TimeLimit {
		rt.fault("time_request", "%s is more than time, %s; placement cannot assume more than the limit", showDuration(j.TimeRequest), showDuration(j.TimeLimit))
	}
	j.Resources = rt.resources(wire.Resources{CPU: wire.Unit}, "time", "time_request")
	rt.done()

	if lt := t.table("limits"); lt.present {
		j.Limits = wire.Limits{}
		r := lt.resources(wire.Resources{})
		for _, k := range lt.obj.keys {
			j.Limits[k] = r.Amount(k)
		}
		lt.done()
	}
}

func (j *Job) readArray(t *table, dir string) {
	a := &Array{}
	spec, lines := t.str("range", ""), t.str("each_line", "")
	switch {
	case t.has("range"):
		if t.has("each_line") {
			t.fault("each_line", "range says what the elements are already; give one of the two")
		}
		if t.bad["range"] {
			break
		}
		var err error
		if a.Ranges, err = ParseRanges(spec); err != nil {
			t.fault("range", "%s", err)
		}
	case lines != "":
		a.EachLine = resolve(dir, lines)
	case !t.bad["range"] && !t.bad["each_line"]:
		t.fault("range", `missing; give range = "0-99" or each_line = "FILE"`)
	}
	t.done()
	j.Array = a
}

var workersRE = regexp.MustCompile(`^([0-9]{1,6}):([0-9]{1,6})$`)

// workers reads 4 or "2:8".
func workers(n *node) (lo, hi int, err error) {
	switch v := n.val.(type) {
	case int64:
		lo = int(max(min(v, unbounded), -1))
		hi = lo
	case string:
		m := workersRE.FindStringSubmatch(v)
		if m == nil {
			return 0, 0, errs.New(errs.Invalid, `%q is not a number of workers; give 4 or "2:8"`, v)
		}
		lo, _ = strconv.Atoi(m[1])
		hi, _ = strconv.Atoi(m[2])
	default:
		return 0, 0, errs.New(errs.Invalid, `%s is %s; give a number of workers: 4 or "2:8"`, n.show(), n.typeName())
	}
	switch {
	case lo < 1 || hi > maxWorkers:
		return 0, 0, errs.New(errs.Invalid, "%s is out of bounds; give from 1 to %d workers", n.show(), maxWorkers)
	case lo > hi:
		return 0, 0, errs.New(errs.Invalid, "%s: the least is more than the most", n.show())
	}
	return lo, hi, nil
}

// maxWorkers bounds the world size of one gang.
const maxWorkers = 65536

var scoreRE = regexp.MustCompile(`^[-+][^\s]+$`)

func (j *Job) readTrain(t *table, dir string) {
	s := &wire.TrainSpec{}
	if n := t.get("workers"); n == nil {
		t.fault("workers", `missing; give the number of ranks, 4 or "2:8"`)
	} else if lo, hi, err := workers(n); err != nil {
		t.fault("workers", "%s", err)
	} else {
		s.MinWorkers, s.Workers = uint32(lo), uint32(hi)
	}
	j.RanksPerNode = uint32(t.integer("per_node", 0, 0, maxWorkers))
	if s.Workers > 0 && j.RanksPerNode > 0 && s.Workers%j.RanksPerNode != 0 {
		t.fault("per_node", "%d workers cannot be spread %d to a node; give a divisor, or 0 for as many as fit", s.Workers, j.RanksPerNode)
	}
	s.MaxRestarts = int(t.integer("max_restarts", DefaultMaxRestarts, 0, 1_000_000))
	if c := t.str("checkpoints", ""); c != "" {
		s.Checkpoints = c
		if !strings.Contains(c, "://") {
			s.Checkpoints = resolve(dir, c)
		}
	}
	s.Keep = int(t.integer("keep", DefaultKeep, 1, 1_000_000))
	if s.Score = t.str("score", ""); s.Score != "" && !scoreRE.MatchString(s.Score) {
		t.fault("score", `%q is not a score; give "-METRIC" when less is better or "+METRIC" when more is, such as "-loss"`, s.Score)
	}
	s.Deterministic = t.boolean("deterministic", false)
	t.done()
	j.Train = s
}

var modelRE = regexp.MustCompile(`^[A-Za-z_][\w.]*:[A-Za-z_]\w*$`)

func (j *Job) readMap(top, t *table) {
	each, lines := t.str("each", ""), t.str("each_line", "")
	switch {
	case each != "" && lines != "":
		t.fault("each_line", "each says what the inputs are already; give one of the two")
	case each == "" && lines == "" && !t.bad["each"] && !t.bad["each_line"]:
		t.fault("each", `missing; give a pattern, such as "images/*.png"`)
	}
	t.integer("batch", 1, 1, 1_000_000)
	t.str("out", "")
	model := t.str("model", "")
	switch {
	case model != "" && !modelRE.MatchString(model):
		t.fault("model", `%q is not a model; give module:Class`, model)
	case model != "" && len(j.Command) > 0:
		t.fault("model", "command says what to run already; give one of the two")
	case model == "" && len(j.Command) == 0 && !t.bad["model"] && !top.bad["command"]:
		t.fault("model", "missing; give model = \"module:Class\" or a command")
	}
	t.done()
}

// Spec is the job as the head takes it. It reads the file of each_line.
func (j *Job) Spec() (wire.JobSpec, error) {
	s := wire.JobSpec{
		Name: j.Name, Kind: j.Kind, Command: j.Command, Dir: j.Dir, Env: j.Env,
		Resources: j.Resources, TimeLimit: int64(j.TimeLimit), TimeRequest: int64(j.TimeRequest),
		Grace: int64(DefaultGrace), RetryFailed: j.RetryFailed, Priority: j.Priority, Limits: j.Limits,
		Ranks: 1, RanksPerNode: j.RanksPerNode, Train: j.Train, Sweep: j.Sweep, Outputs: j.Outputs,
	}
	if j.Train != nil {
		s.Ranks = j.Train.Workers
	}
	if j.Array != nil {
		s.Array = &wire.ArraySpec{Ranges: j.Array.Ranges}
		if j.Array.EachLine != "" {
			lines, err := ReadLines(j.Array.EachLine)
			if err != nil {
				return wire.JobSpec{}, err
			}
			s.Array.Lines, s.Array.Ranges = lines, []wire.Range{{From: 0, To: uint32(len(lines))}}
		}
	}
	return s, nil
}

// DefaultGrace lies between SIGTERM and SIGKILL.
const DefaultGrace = 10 * time.Second

// maxLines bounds a file of elements, in bytes.
const maxLines = 256 << 20

// ReadLines reads the elements of an array, one a line. Line ends are taken off; the
// last line needs none; empty lines are elements too, except at the end of the file.
func ReadLines(path string) ([]string, error) {
	what := "the file of elements"
	st, err := os.Stat(path)
	if err != nil {
		return nil, unreadable(path, err, what)
	}
	if st.Size() > maxLines {
		return nil, errs.New(errs.Invalid, "%s is larger than %d MiB", path, maxLines>>20).Hint("split it into several jobs")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, unreadable(path, err, what)
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return nil, errs.New(errs.Invalid, "%s has no lines", path).Hint("each line of it becomes one task")
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
		if strings.ContainsRune(l, 0) {
			return nil, errs.New(errs.Invalid, "%s:%d: has a NUL byte in it", path, i+1).Hint("elements are lines of text")
		}
	}
	return lines, nil
}
