package sweep

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"launcher/jobs"
	"launcher/wire"
)

func TestRungs(t *testing.T) {
	for _, c := range []struct {
		n          int
		units, eta int64
		want       []int64
	}{
		{3, 9, 3, []int64{1, 3, 9}}, {4, 10, 2, []int64{1, 2, 5, 10}}, {1, 9, 3, []int64{9}}, {3, 900, 3, []int64{100, 300, 900}}, {5, 10, 4, []int64{1, 1, 1, 2, 10}},
	} {
		if got := rungs(c.n, c.units, c.eta); !reflect.DeepEqual(got, c.want) {
			t.Errorf("rungs(%d, %d, %d) = %v, want %v", c.n, c.units, c.eta, got, c.want)
		}
	}
	for _, c := range [][4]int64{{1, 27, 3, 4}, {1, 26, 3, 3}, {3, 27, 3, 3}, {1, 1, 4, 1}, {9, 9, 3, 1}, {100, 900, 3, 3}, {2, 10, 2, 3}} {
		if got := rungCount(c[0], c[1], c[2]); int64(got) != c[3] {
			t.Errorf("rungCount(%d, %d, %d) = %d, want %d", c[0], c[1], c[2], got, c[3])
		}
	}
}

// TestInsert follows the stopping rule by hand: eta 3, so the first two of a rung go on
// as the best of what there is, then the best third, rounded down but at least one.
func TestInsert(t *testing.T) {
	h := newASHA(&wire.EarlySpec{Type: "asha", MinIter: 1, MaxIter: 9, Eta: 3})
	for i, c := range []struct {
		metric float64
		goOn   bool
		sorted string
	}{
		{0.5, true, "[0.5]"}, {0.7, false, "[0.5 0.7]"}, {0.4, true, "[0.4 0.5 0.7]"}, {0.45, false, "[0.4 0.45 0.5 0.7]"},
		{0.4, false, "[0.4 0.4 0.45 0.5 0.7]"}, {0.42, false, "[0.4 0.4 0.42 0.45 0.5 0.7]"}, {0.41, false, "[0.4 0.4 0.41 0.42 0.45 0.5 0.7]"},
		{0.1, true, "[0.1 0.4 0.4 0.41 0.42 0.45 0.5 0.7]"}, {0.3, true, "[0.1 0.3 0.4 0.4 0.41 0.42 0.45 0.5 0.7]"},
	} {
		if goOn := h.insert(0, c.metric); goOn != c.goOn || fmt.Sprint(h.metrics[0]) != c.sorted {
			t.Errorf("%d: insert %v: go on %t in %v; want %t in %s", i, c.metric, goOn, h.metrics[0], c.goOn, c.sorted)
		}
	}
	if h.insert(2, 0) {
		t.Error("the last rung let a trial go on")
	}
}

func spec(change ...func(*wire.JobSpec)) wire.JobSpec {
	s := wire.JobSpec{Kind: wire.KindSweep, Sweep: &wire.SweepSpec{Method: "random", Metric: "loss", RunCap: 20, Seed: 7,
		Parameters: []wire.Parameter{{Name: "lr", Distribution: "log_uniform_values", Min: 1e-5, Max: 0.1}, {Name: "h", Distribution: "categorical", Values: []any{int64(16), int64(32)}}},
		Command:    []string{"./p", "${args}"}}}
	for _, f := range change {
		f(&s)
	}
	return s
}

func machine(t *testing.T, s wire.JobSpec) *Sweep {
	t.Helper()
	m, err := New(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m.(*Sweep)
}

func report(i uint32, step int64, loss float64) wire.Report {
	return wire.Report{Proc: wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1, Index: i}, Attempt: 1}}, Step: step, Metrics: map[string]float64{"loss": loss}}
}

func TestGrid(t *testing.T) {
	s := spec(func(s *wire.JobSpec) {
		s.Sweep.Method, s.Sweep.RunCap = "grid", 0
		s.Sweep.Parameters = []wire.Parameter{
			{Name: "a", Distribution: "categorical", Values: []any{"x", "y"}}, {Name: "b.c", Distribution: "int_uniform", Min: 1, Max: 3},
			{Name: "b.d", Distribution: "constant", Values: []any{true}}, {Name: "e", Distribution: "q_uniform", Min: 0, Max: 0.2, Q: 0.1}}
	})
	m := machine(t, s)
	if n, final := m.Total(); n != 18 || !final {
		t.Fatalf("total %d, %t", n, final)
	}
	var got []string
	for _, sp := range m.Next(1000) {
		got = append(got, string(sp.Params))
	}
	if len(got) != 18 || got[0] != `{"a": "x", "b": {"c": 1, "d": true}, "e": 0.0}` || got[1] != `{"a": "x", "b": {"c": 1, "d": true}, "e": 0.1}` ||
		got[17] != `{"a": "y", "b": {"c": 3, "d": true}, "e": 0.2}` {
		t.Errorf("%q", got)
	}
	if slices.Sort(got); len(slices.Compact(got)) != 18 {
		t.Error("a point came twice")
	}
	s.Sweep.RunCap = 5
	if n, _ := machine(t, s).Total(); n != 5 {
		t.Errorf("run_cap: %d", n)
	}
}

// TestDistributions checks each distribution's bounds, step and two quantiles.
func TestDistributions(t *testing.T) {
	const n = 4000
	for _, c := range []struct {
		p              wire.Parameter
		lo, hi, median float64
		tolerance      float64
	}{
		{wire.Parameter{Distribution: "uniform", Min: -1, Max: 3}, -1, 3, 1, 0.1},
		{wire.Parameter{Distribution: "int_uniform", Min: 1, Max: 5}, 1, 5, 3, 0},
		{wire.Parameter{Distribution: "q_uniform", Min: 0, Max: 1, Q: 0.25}, 0, 1, 0.5, 0},
		{wire.Parameter{Distribution: "q_uniform", Min: 8, Max: 100, Q: 8}, 8, 96, 56, 8},
		{wire.Parameter{Distribution: "log_uniform", Min: 0, Max: 2}, 1, math.Exp(2), math.E, 0.2},
		{wire.Parameter{Distribution: "q_log_uniform", Min: 0, Max: 4, Q: 1}, 1, 55, 7, 1},
		{wire.Parameter{Distribution: "inv_log_uniform", Min: 0, Max: 2}, math.Exp(-2), 1, 1 / math.E, 0.03},
		{wire.Parameter{Distribution: "log_uniform_values", Min: 1e-4, Max: 1}, 1e-4, 1, 1e-2, 2e-3},
		{wire.Parameter{Distribution: "inv_log_uniform_values", Min: 1e-4, Max: 1}, 1e-4, 1, 1e-2, 2e-3},
		{wire.Parameter{Distribution: "q_log_uniform_values", Min: 8, Max: 128, Q: 8}, 8, 128, 32, 8},
		{wire.Parameter{Distribution: "normal", Mu: 5, Sigma: 2}, -10, 20, 5, 0.15},
		{wire.Parameter{Distribution: "q_normal", Mu: 5, Sigma: 2, Q: 0.5}, -10, 20, 5, 0.5},
		{wire.Parameter{Distribution: "log_normal", Mu: 0, Sigma: 1}, 0, 1e4, 1, 0.1},
		{wire.Parameter{Distribution: "q_log_normal", Mu: 3, Sigma: 1, Q: 1}, 0, 1e5, 20, 2},
	} {
		s := &wire.SweepSpec{Method: "random", Seed: 1, Parameters: []wire.Parameter{c.p}}
		var xs []float64
		for i := range uint32(n) {
			v := Params(s, i)[0].V
			x, isFloat := v.(float64)
			if k, isInt := v.(int64); isInt {
				x = float64(k)
			} else if !isFloat {
				t.Fatalf("%s: %T", c.p.Distribution, v)
			}
			if _, isInt := v.(int64); isInt != (c.p.Q >= 1 || c.p.Distribution == "int_uniform") {
				t.Fatalf("%+v: %T", c.p, v)
			}
			if x < c.lo || x > c.hi {
				t.Fatalf("%+v: %v is outside", c.p, x)
			}
			if q := c.p.Q; q > 0 && math.Abs(x/q-math.Round(x/q)) > 1e-6 {
				t.Fatalf("%+v: %v is no multiple of %v", c.p, x, q)
			}
			xs = append(xs, x)
		}
		slices.Sort(xs)
		if m := xs[n/2]; math.Abs(m-c.median) > c.tolerance {
			t.Errorf("%+v: median %v, want %v", c.p, m, c.median)
		}
		if c.p.Distribution == "normal" {
			if z := (xs[n*8413/10000] - 5) / 2; math.Abs(z-1) > 0.1 {
				t.Errorf("one sigma of the normal is %v", z)
			}
		}
	}
	s := &wire.SweepSpec{Method: "random", Parameters: []wire.Parameter{
		{Name: "a", Distribution: "categorical", Values: []any{"x", "y", "z"}},
		{Name: "b", Distribution: "categorical", Values: []any{"x", "y", "z"}, Probs: []float64{0.5, 0, 0.5}},
		{Name: "c", Distribution: "constant", Values: []any{[]any{int64(1), "two"}}}}}
	count := map[string]int{}
	for i := range uint32(n) {
		for _, v := range Params(s, i) {
			count[v.Name+Text(v.V)]++
		}
	}
	for k, want := range map[string]int{"ax": n / 3, "ay": n / 3, "az": n / 3, "bx": n / 2, "by": 0, "bz": n / 2, `c[1, "two"]`: n} {
		if got := count[k]; math.Abs(float64(got-want)) > 0.05*n {
			t.Errorf("%s came %d times of %d, want %d", k, got, n, want)
		}
	}
}

// TestSeed fixes the draws for ever: a sweep continued by a later version must go on
// with the same trials.
func TestSeed(t *testing.T) {
	draw := func(s wire.JobSpec) (out string) {
		for i := range uint32(3) {
			v := Params(s.Sweep, i)
			out += fmt.Sprintf("%.9g %v ", v[0].V, v[1].V)
		}
		return out
	}
	got := draw(spec())
	if want := "1.35609906e-05 16 0.000108808196 32 4.12256869e-05 16 "; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	other := spec(func(s *wire.JobSpec) { s.Sweep.Seed = 8 })
	if draw(other) == got {
		t.Error("the seed changes nothing")
	}
}

func TestExpand(t *testing.T) {
	values := []Value{{"lr", 0.1}, {"opt.name", "a'b c"}, {"flag", true}, {"off", false}, {"n", int64(3)}, {"none", nil}, {"list", []any{int64(1), 2.0}}}
	for _, c := range []struct{ in, want []string }{
		{[]string{"${env}", "${interpreter}", "${program}", "${args}"}, []string{"/usr/bin/env", "python3", "t.py", "--lr=0.1", "--opt.name=a'b c", "--flag=True", "--off=False", "--n=3", "--none=None", "--list=[1, 2.0]"}},
		{[]string{"x", "${args_no_boolean_flags}"}, []string{"x", "--lr=0.1", "--opt.name=a'b c", "--flag", "--n=3", "--none=None", "--list=[1, 2.0]"}},
		{[]string{"x", "${args_no_hyphens}", "-y"}, []string{"x", "lr=0.1", "opt.name=a'b c", "flag=True", "off=False", "n=3", "none=None", "list=[1, 2.0]", "-y"}},
		{[]string{"x", "--conf=${args_json}"}, []string{"x", `--conf={"lr": 0.1, "opt": {"name": "a'b c"}, "flag": true, "off": false, "n": 3, "none": null, "list": [1, 2.0]}`}},
		{[]string{"x", "", "${nope}", "$HOME", "pre-${program}-post"}, []string{"x", "", "${nope}", "$HOME", "pre-t.py-post"}},
	} {
		if got := Expand(c.in, "t.py", values); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q\n got %q\nwant %q", c.in, got, c.want)
		}
	}
	// What the node knows goes in on the node, through a real shell.
	argv := Expand([]string{"printf", "[%s]", "", "${args_no_hyphens}", "-f=${args_json_file}", "a${envvar:WHO}'b $X"}, "t.py", values[:2])
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"LAUNCHER_PARAMS=/tmp/p q.json", "WHO=a b$c", "PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if want := "[][lr=0.1][opt.name=a'b c][-f=/tmp/p q.json][aa b$c'b $X]"; string(out) != want || err != nil {
		t.Errorf("got %s, %v\nwant %s", out, err, want)
	}
	cmd.Env = []string{"LAUNCHER_PARAMS=x"}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("a variable that is not set passed: %s", out)
	}
}

func TestJSON(t *testing.T) {
	got := JSON([]Value{{"a.b", 1.0}, {"a.c.d", "<é\n>"}, {"x", int64(1)}, {"x.y", int64(2)}, {"m", map[string]any{"z": nil, "k": []any{}}}, {"inf", math.Inf(1)}})
	if want := `{"a": {"b": 1.0, "c": {"d": "<é\n>"}}, "x": 1, "x.y": 2, "m": {"k": [], "z": null}, "inf": null}`; string(got) != want || !json.Valid(got) {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestConcurrentAndEnds(t *testing.T) {
	m := machine(t, spec(func(s *wire.JobSpec) { s.Sweep.Concurrent, s.Sweep.RunCap, s.RetryFailed = 2, 4, 1 }))
	if got := m.Next(10); len(got) != 2 || got[0].Index != 0 || !strings.HasPrefix(got[0].Command[1], "--lr=") {
		t.Fatalf("%+v", got)
	}
	if len(m.Next(10)) != 0 {
		t.Error("more than concurrent")
	}
	step := func(want jobs.Verdict, e jobs.End) {
		t.Helper()
		if got := m.Ended(e); got != want {
			t.Errorf("%+v: verdict %d, want %d", e, got, want)
		}
	}
	m.Report(report(0, 1, 0.5))
	step(jobs.Done, jobs.End{Index: 0})
	step(jobs.Retry, jobs.End{Index: 1, Code: 3})
	step(jobs.Retry, jobs.End{Index: 1, Code: 75, Left: true})
	step(jobs.Failed, jobs.End{Index: 1, Code: 3})
	if got := m.Next(1); len(got) != 1 || got[0].Index != 2 {
		t.Fatalf("%+v", got)
	}
	step(jobs.Failed, jobs.End{Index: 2, Reason: wire.ReasonCancelled, Code: 143})
	m.Next(9)
	if _, _, _, over := m.Over(); over {
		t.Error("over with a trial running")
	}
	step(jobs.Failed, jobs.End{Index: 3, Lost: true, Code: -1})
	if s, code, cause, over := m.Over(); !over || s != wire.StateDone || code != 0 || cause != "2 of 4 trials failed" {
		t.Errorf("%v %d %q %t", s, code, cause, over)
	}
	var states []string
	for _, x := range m.Table().Trials {
		states = append(states, x.State.String())
	}
	if fmt.Sprint(states) != "[done failed cancelled failed]" {
		t.Error(states)
	}
	if len(m.Next(9)) != 0 {
		t.Error("more than run_cap")
	}
}

func TestTarget(t *testing.T) {
	target := 0.9
	m := machine(t, spec(func(s *wire.JobSpec) { s.Sweep.Maximize, s.Sweep.Target = true, &target }))
	m.Next(3)
	if a := m.Report(report(0, 1, 0.89)); a.Leave != "" || a.Stop != nil {
		t.Errorf("%+v", a)
	}
	if a := m.Report(report(1, 1, 0.9)); a.Leave != wire.LeavePruned || !slices.Equal(a.Stop, []uint32{0, 2}) {
		t.Errorf("%+v", a)
	}
	if len(m.Next(5)) != 0 {
		t.Error("begins trials after the target")
	}
	if n, final := m.Total(); n != 3 || !final {
		t.Errorf("total %d %t", n, final)
	}
	for i, want := range []jobs.Verdict{jobs.Pruned, jobs.Done, jobs.Pruned} {
		if got := m.Ended(jobs.End{Index: uint32(i), Code: int32(75 * (i % 2))}); got != want {
			t.Errorf("trial %d: %d, want %d", i, got, want)
		}
	}
	if s, _, cause, over := m.Over(); s != wire.StateDone || !over || !strings.Contains(cause, "trial 1 reached the target: loss = 0.9") {
		t.Errorf("%v %q", s, cause)
	}
	if b := m.Best(); b == nil || b.Index != 1 || *b.Best != 0.9 {
		t.Errorf("best %+v", b)
	}
}

func TestGiveUp(t *testing.T) {
	m := machine(t, spec())
	for i := range firstFailures {
		if _, _, _, over := m.Over(); over {
			t.Fatalf("over after %d", i)
		}
		m.Next(1)
		m.Ended(jobs.End{Index: uint32(i), Code: 127, Cause: "p: not found"})
	}
	if s, code, cause, over := m.Over(); !over || s != wire.StateFailed || code != 127 || !strings.Contains(cause, "p: not found") {
		t.Errorf("%v %d %q %t", s, code, cause, over)
	}
}

func early(s *wire.JobSpec) {
	s.Sweep.Early = &wire.EarlySpec{Type: "asha", MinIter: 1, MaxIter: 9, Eta: 3}
}

func TestHalving(t *testing.T) {
	m := machine(t, spec(early))
	m.Next(4)
	expect := func(i uint32, step int64, loss float64, leave wire.LeaveReason) {
		t.Helper()
		if a := m.Report(report(i, step, loss)); a.Leave != leave {
			t.Errorf("trial %d step %d loss %v: %q, want %q", i, step, loss, a.Leave, leave)
		}
	}
	expect(0, 1, 0.5, "")
	expect(1, 1, 0.6, wire.LeavePruned)
	expect(0, 2, 9, "")                        // between rungs
	expect(0, 1, 0.5, "")                      // sent again
	expect(2, 1, math.NaN(), wire.LeavePruned) // diverged: worst of all
	expect(3, 4, 0.1, "")                      // jumped over two rungs
	expect(0, 3, 0.4, wire.LeavePruned)        // second of two in rung 3
	expect(3, 9, 0.05, wire.LeavePruned)       // has had all its steps
	for i, want := range []jobs.Verdict{jobs.Pruned, jobs.Pruned, jobs.Pruned, jobs.Done} {
		if got := m.Ended(jobs.End{Index: uint32(i)}); got != want {
			t.Errorf("trial %d: verdict %d, want %d", i, got, want)
		}
	}
	if got := fmt.Sprint(m.halving.metrics[:2]); got != fmt.Sprintf("[[0.1 0.5 0.6 %v] [0.1 0.4]]", worst) {
		t.Error(got)
	}
	m.Next(1) // a failed trial takes its place in the rung as the worst there is
	m.Ended(jobs.End{Index: 4, Code: 1})
	if r := m.halving.metrics[0]; len(r) != 5 || r[4] != worst {
		t.Error(r)
	}
	tab := m.Table()
	if tab.Units != 3+1+1+9 || !tab.Trials[0].Pruned || tab.Trials[3].Pruned || *tab.Trials[0].Metric != 0.4 || *tab.Trials[0].Best != 0.4 {
		t.Errorf("%+v", tab)
	}
	if b := m.Best(); b.Index != 3 || *b.Best != 0.05 {
		t.Errorf("best %+v", b)
	}
}

// drive runs a whole sweep with a random order of events; every so often the machine is
// replaced by one made from its snapshot.
func drive(t *testing.T, s wire.JobSpec, seed uint64, width int, restore bool, loss func(v []Value, step int64) float64) *Sweep {
	t.Helper()
	m := machine(t, s)
	r := rand.New(rand.NewPCG(seed, 1))
	steps := map[uint32]int64{}
	var live []uint32
	leave := map[uint32]bool{}
	given := uint32(0)
	for range 1_000_000 {
		if restore && r.IntN(5) == 0 {
			again, err := New(s, m.Snapshot())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(again.Snapshot(), m.Snapshot()) {
				t.Fatal("a snapshot does not round-trip")
			}
			m = again.(*Sweep)
		}
		for _, sp := range m.Next(width - len(live)) {
			if sp.Index != given {
				t.Fatalf("trial %d given, %d expected", sp.Index, given)
			}
			given++
			live = append(live, sp.Index)
		}
		if len(live) > width || s.Sweep.Concurrent > 0 && len(live) > s.Sweep.Concurrent {
			t.Fatalf("%d trials at a time", len(live))
		}
		if _, _, _, over := m.Over(); over {
			if len(live) > 0 {
				t.Fatal("over with trials running")
			}
			return m
		}
		k := r.IntN(len(live))
		i := live[k]
		end := func(code int32) {
			if v := m.Ended(jobs.End{Index: i, Code: code}); v != jobs.Retry {
				live = slices.Delete(live, k, k+1)
			}
		}
		switch {
		case leave[i]:
			end([]int32{0, 75, 1}[r.IntN(3)])
		case steps[i] >= 27:
			end(0)
		default:
			steps[i]++
			a := m.Report(report(i, steps[i], loss(Params(s.Sweep, i), steps[i])))
			leave[i] = a.Leave != ""
			for _, o := range a.Stop {
				leave[o] = true
			}
		}
	}
	t.Fatal("the sweep does not end")
	return nil
}

// curve is a learning curve whose floor depends on how far lr is from 0.01.
func curve(v []Value, step int64) float64 {
	off := math.Abs(math.Log10(v[0].V.(float64)) + 2)
	return 0.1*off + math.Exp(-float64(step)/6)*(0.5+0.1*off)
}

// TestFewerUnits: on curves that can be told apart early, stopping spends a fifth of the
// steps at most and finds as good a trial.
func TestFewerUnits(t *testing.T) {
	for seed := range uint64(5) {
		base := spec(func(s *wire.JobSpec) { s.Sweep.RunCap, s.Sweep.Seed = 100, seed })
		cut := base
		sw := *base.Sweep
		cut.Sweep = &sw
		sw.Early = &wire.EarlySpec{Type: "asha", MinIter: 1, MaxIter: 27, Eta: 3}
		full, few := drive(t, base, seed, 4, false, curve), drive(t, cut, seed, 4, true, curve)
		a, b := full.Table().Units, few.Table().Units
		if a != 2700 || b*5 > a {
			t.Errorf("seed %d: %d units without stopping, %d with", seed, a, b)
		}
		if x, y := *full.Best().Best, *few.Best().Best; y > x+0.05 {
			t.Errorf("seed %d: best %v without stopping, %v with", seed, x, y)
		}
	}
}

// TestProperties drives sweeps of many shapes through random orders, with restores.
func TestProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	target := 0.15
	for k := range uint64(60) {
		s := spec(func(s *wire.JobSpec) {
			s.Sweep.RunCap, s.Sweep.Seed, s.RetryFailed = 1+r.IntN(40), k, r.IntN(3)
			s.Sweep.Concurrent = r.IntN(4)
			if r.IntN(2) == 0 {
				s.Sweep.Early = &wire.EarlySpec{Type: "asha", MinIter: 1 + r.Int64N(3), MaxIter: 3 + r.Int64N(30), Eta: 2 + r.Int64N(3)}
			}
			if r.IntN(3) == 0 {
				s.Sweep.Target = &target
			}
		})
		m := drive(t, s, k, 1+r.IntN(8), true, curve)
		tab := m.Table()
		n, final := m.Total()
		if !final || int(n) != len(tab.Trials) || int(n) > s.Sweep.RunCap {
			t.Fatalf("%d: total %d of %d, final %t", k, n, s.Sweep.RunCap, final)
		}
		for _, x := range tab.Trials {
			if !x.State.Terminal() {
				t.Fatalf("%d: trial %d is %s", k, x.Index, x.State)
			}
			if e := s.Sweep.Early; e != nil && x.Step > e.MaxIter {
				t.Fatalf("%d: trial %d had %d steps of %d", k, x.Index, x.Step, e.MaxIter)
			}
		}
		if h := m.halving; h != nil {
			for i, rung := range h.metrics {
				if !slices.IsSorted(rung) || i > 0 && len(rung) > len(h.metrics[i-1]) {
					t.Fatalf("%d: rung %d is %v", k, i, rung)
				}
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, f := range map[string]func(*wire.JobSpec){
		"no sweep": func(s *wire.JobSpec) { s.Sweep = nil }, "method": func(s *wire.JobSpec) { s.Sweep.Method = "tpe" },
		"no end": func(s *wire.JobSpec) { s.Sweep.RunCap = 0 }, "early": func(s *wire.JobSpec) { s.Sweep.Early = &wire.EarlySpec{Type: "median"} },
		"no steps": func(s *wire.JobSpec) { s.Sweep.Early = &wire.EarlySpec{Type: "asha"} },
	} {
		if _, err := New(spec(f), nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(spec(early), []byte("junk")); err == nil {
		t.Error("junk accepted as a snapshot")
	}
	if _, err := New(spec(early), machine(t, spec()).Snapshot()); err == nil {
		t.Error("a snapshot of another sweep accepted")
	}
}

// FuzzSnapshot: bytes from a journal make a machine or an error, never a panic.
func FuzzSnapshot(f *testing.F) {
	m, _ := New(spec(early), nil)
	m.Next(3)
	m.Report(report(0, 4, 0.5))
	m.Ended(jobs.End{Index: 1, Code: 1})
	f.Add(m.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := New(spec(early), b)
		if err != nil {
			return
		}
		m.Report(report(0, 9, 0.1))
		m.Next(2)
		m.Ended(jobs.End{Index: 0, Code: 1})
		m.Over()
		m.(*Sweep).Table()
	})
}
