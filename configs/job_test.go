package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

func TestJobFaults(t *testing.T) {
	const run = "version = 1\ncommand = [\"true\"]\n"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"run", run, nil},
		{"no command", "version = 1\n", []string{"1: command: missing"}},
		{"empty command", "version = 1\ncommand = []\n", []string{"2: command: the list is empty"}},
		{"kind", run + "kind = \"trian\"\n", []string{`3: kind: "trian" is unknown; did you mean train?`}},
		{"kind and table", run + "kind = \"run\"\n[array]\nrange = \"0-9\"\n", []string{`4: array: the table belongs to kind = "array", but kind is "run"`}},
		{"table missing", run + "kind = \"train\"\n", []string{`1: train: missing; kind = "train" needs a table [train]`}},
		{"workdir", run + "workdir = \"nowhere\"\n", []string{"3: workdir: there is no directory"}},
		{"places", run + "cluster = \"a\"\non = \"b.toml\"\n", []string{"4: on: cluster says where to run already"}},
		{"outputs", run + "outputs = [\"../x\", \"a[\", \"ok/*.csv\"]\n", []string{`3: outputs: "../x" is not a pattern`, `3: outputs: "a[" is not a pattern`}},
		{"resources", run + "[resources]\ncpu = 0.00001\ngpus = 1\ntime = \"10m\"\ntime_request = \"1h\"\n", []string{
			"4: resources.cpu: 1e-05 is too fine", "5: resources.gpus: unknown key; did you mean gpu?", "7: resources.time_request: 1h is more than time, 10m"}},
		{"array", run + "[array]\n", []string{"3: array.range: missing"}},
		{"array both", run + "[array]\nrange = \"9-0\"\neach_line = \"f\"\n", []string{`4: array.range: "9-0" is not a range`, "5: array.each_line: range says"}},
		{"array range", run + "[array]\nrange = \"9-0\"\n", []string{`4: array.range: "9-0" is not a range: 9 is after 0`}},
		{"train", run + "[train]\nworkers = \"8:2\"\nper_node = 3\nscore = \"loss\"\nkeep = 0\nmax_restarts = -1\n", []string{
			`4: train.workers: "8:2": the least is more`, `6: train.score: "loss" is not a score`, "7: train.keep: 0 is out of bounds", "8: train.max_restarts: -1 is out of bounds"}},
		{"train per node", run + "[train]\nworkers = 4\nper_node = 3\n", []string{"5: train.per_node: 4 workers cannot be spread 3 to a node"}},
		{"a cluster spec", "version = 1" + okPool, []string{"1: : it is a cluster spec, not a job file; hand it to launcher up"}},
		{"map", "version = 1\n[map]\neach = \"a\"\nmodel = \"x\"\n", []string{"2: map: a table: not in this version", `4: map.model: "x" is not a model`}},
		{"sweep", "version = 1\n[sweep]\nmethod = \"randm\"\nearly_terminate = { type = \"asha\", min_iter = 9, max_iter = 3 }\n[sweep.parameters]\n", []string{
			`2: sweep.metric: missing`, `2: sweep.program: missing`, `3: sweep.method: "randm" is unknown; did you mean random?`, "4: sweep.early_terminate.min_iter: 9 is more than max_iter, 3", "5: sweep.parameters: it is empty"}},
		{"random without end", "version = 1\n[sweep]\nprogram = \"x\"\nmethod = \"random\"\nparameters.a.value = 1\n", []string{`2: sweep.run_cap: missing; method "random" goes on for ever`}},
		{"parameters", "version = 1\n[sweep]\nprogram = \"x\"\nmethod = \"random\"\nrun_cap = 1\n[sweep.parameters]\n" +
			"a = { min = 2, max = 1 }\nb = { distribution = \"log_uniform_values\", min = 0, max = 1 }\nc = { distribution = \"unifrom\", min = 0, max = 1 }\n" +
			"d = { values = [] }\ne = { values = [1, 2], probabilities = [0.5, 0.6] }\nf = 3\ng = {}\nh = { min = 1 }\ni = { distribution = \"normal\", min = 1 }\nj = { distribution = \"int_uniform\", min = 0.5, max = 2 }\nk = { min = 0, max = 1, step = 2 }\nl = { distribution = \"log_uniform\", min = 0, max = 1e6 }\n", []string{
			"7: sweep.parameters.a.min: 2 is more than max, 1", `8: sweep.parameters.b.min: 0 is out of bounds; distribution "log_uniform_values" needs more than 0`,
			`9: sweep.parameters.c.distribution: "unifrom" is unknown; did you mean uniform?`, "10: sweep.parameters.d.values: the list is empty",
			"11: sweep.parameters.e.probabilities: they add up to 1.1", "12: sweep.parameters.f: 3 is an integer; give a table", "13: sweep.parameters.g: it says nothing about its values",
			`14: sweep.parameters.h.max: missing; distribution "uniform" needs it`, `15: sweep.parameters.i.min: distribution "normal" does not take it`,
			"16: sweep.parameters.j.min: 0.5 is a number; give an integer", "17: sweep.parameters.k.step: unknown key", "18: sweep.parameters.l.max: exp(1e+06) is too large"}},
		{"grid of a continuum", "version = 1\n[sweep]\nprogram = \"x\"\nmethod = \"grid\"\n[sweep.parameters]\na = { min = 0.0, max = 1.0 }\n", []string{
			`6: sweep.parameters.a: method grid cannot count the values of distribution "uniform"`}},
		{"grid, nested", "version = 1\n[sweep]\nprogram = \"x\"\nmethod = \"grid\"\n[sweep.parameters]\nd = { values = [1, 2], probabilities = [0.5, 0.5] }\n[sweep.parameters.o.parameters]\na = { value = 1 }\nb = { min = 0.0, max = 1.0 }\n", []string{
			"6: sweep.parameters.d: method grid takes each value once", "9: sweep.parameters.o.b: method grid cannot count"}},
		{"values that JSON has not", "version = 1\n[sweep]\nprogram = \"x\"\nmethod = \"random\"\nrun_cap = 1\n[sweep.parameters]\na = { values = [1, nan] }\nb = { value = { x = [inf] } }\nc = { value = 2020-01-02 }\nd = { min = 0, max = 9223372036854775807 }\ne = { min = -9007199254740993, max = 0 }\n", []string{
			"7: sweep.parameters.a.values: NaN is not a finite number", "8: sweep.parameters.b.value: +Inf is not a finite number", "9: sweep.parameters.c.value: 2020-01-02 is a date or time without quotes; put it in quotes",
			"10: sweep.parameters.d.max: 9223372036854775807 is out of bounds; give an integer from -9007199254740992 to 9007199254740992", "11: sweep.parameters.e.min: -9007199254740993 is out of bounds"}},
		{"macros", "version = 1\ncommand = [\"${interpeter}\", \"${program}\", \"${envvar:A-B}\"]\n[sweep]\nmethod = \"grid\"\nparameters.a.value = 1\n", []string{
			"2: command: ${interpeter} is no macro; did you mean interpreter?", "2: command: ${program} needs the key program", `2: command: ${envvar:A-B}: "A-B" is not the name of a variable`}},
		{"two commands", "version = 1\ncommand = [\"a\"]\n[sweep]\ncommand = [\"b\"]\nmethod = \"grid\"\nparameters.a.value = 1\n", []string{"4: sweep.command: the job file has a command too"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseJob("job.toml", filepath.Join(t.TempDir(), "job.toml"), []byte(c.text))
			compare(t, err, c.want)
		})
	}
}

func TestJobSpec(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lines"), []byte("a\r\n\nb c"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "score.toml")
	write := func(text string) wire.JobSpec {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := LoadJob(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := j.Spec()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	base := wire.JobSpec{Name: "score", Command: []string{"x", "{}"}, Dir: dir, Grace: int64(10 * time.Second), Ranks: 1, Resources: wire.Resources{CPU: wire.Unit}}
	check := func(got, want wire.JobSpec) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("\n got %+v\nwant %+v", got, want)
		}
	}
	head := "version = 1\ncommand = [\"x\", \"{}\"]\n"

	want := base
	want.Kind, want.Array = wire.KindArray, &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: 3}}, Lines: []string{"a", "", "b c"}}
	check(write(head+"[array]\neach_line = \"lines\"\n"), want)

	want = base
	want.Kind, want.Env, want.RetryFailed, want.Priority = wire.KindArray, []string{"A=b"}, 2, -3
	want.Resources = wire.Resources{CPU: 5000, GPU: 2500, Memory: 2 << 30, Custom: map[string]int64{"license": 10000}}
	want.TimeLimit, want.TimeRequest = int64(time.Hour), int64(time.Minute)
	want.Array = &wire.ArraySpec{Ranges: []wire.Range{{From: 1, To: 6}, {From: 9, To: 10}}}
	want.Limits = wire.Limits{"cpu": 80000, "memory": 1 << 30, "license": 20000}
	check(write(head+"retry_failed = 2\npriority = -3\nenv = { A = \"b\" }\n[resources]\ncpu = 0.5\ngpu = 0.25\nmemory = \"2GiB\"\nlicense = 1\ntime = \"1h\"\ntime_request = \"1m\"\n[array]\nrange = \"4-5,1-3,9\"\n[limits]\ncpu = 8\nmemory = \"1GiB\"\nlicense = 2\n"), want)

	want = base
	want.Kind, want.Ranks, want.RanksPerNode = wire.KindTrain, 4, 2
	want.Train = &wire.TrainSpec{MinWorkers: 4, Workers: 4, MaxRestarts: 3, Checkpoints: filepath.Join(dir, "runs/d"), Keep: 2, Score: "-loss"}
	check(write(head+"[train]\nworkers = \"4:4\"\nper_node = 2\ncheckpoints = \"runs/d\"\nscore = \"-loss\"\n"), want)

	if _, err := LoadSweep(path); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "not a sweep") {
		t.Error(err)
	}
}

func TestWandb(t *testing.T) {
	text := `program: train.py
name: My Sweep
project: p
method: random
run_cap: 10
metric: {name: val.loss, goal: maximize, target: 0.9}
parameters:
  lr: &lr
    distribution: log_uniform_values
    min: 1e-5
    max: 0.1
  lr2: *lr
  hidden:
    values: [16, 32, "x", true, null, 1.5]
  layers: {min: 1, max: 4}
  drop: {min: 0, max: 0.5}
  optimizer:
    parameters:
      name: {value: adam}
      beta: {distribution: q_normal, mu: 0.9, sigma: 0.01, q: 0.001}
early_terminate:
  type: asha
  max_iter: 27
command: ["${env}", python3, "${program}", "--seed=1", "${args_no_hyphens}"]
`
	j, err := ParseWandb("s.yaml", "/d/s.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	target := 0.9
	lr := wire.Parameter{Name: "lr", Distribution: "log_uniform_values", Min: 1e-5, Max: 0.1}
	lr2 := lr
	lr2.Name = "lr2"
	command := []string{"${env}", "python3", "${program}", "--seed=1", "${args_no_hyphens}"}
	want := &Job{Path: "/d/s.yaml", Name: "My-Sweep", Kind: wire.KindSweep, Dir: "/d", Resources: wire.Resources{CPU: wire.Unit}, Command: command,
		Sweep: &wire.SweepSpec{Method: "random", Metric: "val.loss", Maximize: true, Target: &target, RunCap: 10, Program: "train.py", Command: command,
			Early: &wire.EarlySpec{Type: "asha", MinIter: 1, MaxIter: 27, Eta: 3},
			Parameters: []wire.Parameter{lr, lr2,
				{Name: "hidden", Distribution: "categorical", Values: []any{int64(16), int64(32), "x", true, nil, 1.5}},
				{Name: "layers", Distribution: "int_uniform", Min: 1, Max: 4},
				{Name: "drop", Distribution: "uniform", Max: 0.5},
				{Name: "optimizer.name", Distribution: "constant", Values: []any{"adam"}},
				{Name: "optimizer.beta", Distribution: "q_normal", Mu: 0.9, Sigma: 0.01, Q: 0.001},
			}}}
	if !reflect.DeepEqual(j, want) {
		t.Errorf("\n got %+v %+v\nwant %+v %+v", j, j.Sweep, want, want.Sweep)
	}
	if d, err := ParseWandb("s.yaml", "/d/s.yaml", []byte("program: a.py\nmethod: grid\nparameters: {a: {value: 1}}\n")); err != nil || !reflect.DeepEqual(d.Command, DefaultSweepCommand) {
		t.Errorf("default command %v, %v", d, err)
	}
}

func TestWandbFaults(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"1: : not YAML: the file is empty"}},
		{"syntax", "program: a\nmethod: [grid\n", []string{"2: : not YAML"}},
		{"duplicate", "program: a\nprogram: b\n", []string{"2: : not YAML"}},
		{"list", "- a\n", []string{"1: : the file must be a table"}},
		{"alias", "program: *a\n", []string{"1: : not YAML"}},
		{"two documents", "program: a\n---\nprogram: b\n", []string{"3: : not YAML: a second document"}},
		{"keys", "program: a.py\nmehtod: grid\nmethod: bayes\nrun_cap: 5\nparameters:\n  lr:\n    min: 3\n    max: 1\n  x:\n    value: 1\n    vaule: 2\nearly_terminate:\n  type: hyperband\n  min_iter: 3\nmetric:\n  nmae: loss\n", []string{
			"2: mehtod: unknown key; did you mean method?", `3: method: "bayes": not in this version`, "7: parameters.lr.min: 3 is more than max, 1",
			"11: parameters.x.vaule: unknown key; did you mean value?", `13: early_terminate.type: "hyperband": not in this version`, "15: metric.name: missing", "16: metric.nmae: unknown key; did you mean name?"}},
		{"bomb", "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n", []string{"1: : not YAML: too large"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseWandb("s.yaml", "/d/s.yaml", []byte(c.text))
			compare(t, err, c.want)
		})
	}
}

func TestReadLines(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string][]string{"a\nb\n": {"a", "b"}, "a": {"a"}, "\na\n\n": {"", "a"}, "\n": nil, "": nil, "a\x00b": nil} {
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadLines(path)
		if !reflect.DeepEqual(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	if _, err := ReadLines(filepath.Join(dir, "none")); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}
