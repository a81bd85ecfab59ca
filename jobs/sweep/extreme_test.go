package sweep

import (
	"math"
	"testing"

	"launcher/jobs"
	"launcher/wire"
)

// TestExtremeBounds holds that every sample is a number that JSON has, within its bounds.
func TestExtremeBounds(t *testing.T) {
	for _, p := range []wire.Parameter{
		{Distribution: "uniform", Min: -math.MaxFloat64, Max: math.MaxFloat64},
		{Distribution: "inv_log_uniform", Min: -800, Max: 700},
		{Distribution: "log_normal", Mu: 1000, Sigma: 1},
		{Distribution: "normal", Mu: math.MaxFloat64, Sigma: math.MaxFloat64},
		{Distribution: "q_normal", Mu: math.MaxFloat64, Sigma: 1, Q: 1e-300},
		{Distribution: "q_log_normal", Mu: 1000, Sigma: 1, Q: 0.5},
		{Distribution: "q_uniform", Min: 0, Max: 1e300, Q: 1e299},
		{Distribution: "int_uniform", Min: -1 << 53, Max: 1 << 53},
	} {
		p.Name = "x"
		s := &wire.SweepSpec{Method: "random", Parameters: []wire.Parameter{p}}
		for i := range uint32(200) {
			v, ok := Params(s, i)[0].V.(float64)
			if n, isInt := Params(s, i)[0].V.(int64); isInt {
				v, ok = float64(n), true
			}
			bounded := p.Max != 0 && p.Distribution != "inv_log_uniform"
			if !ok || math.IsNaN(v) || math.IsInf(v, 0) || bounded && (v < p.Min || v > p.Max) {
				t.Fatalf("%+v: trial %d has %v", p, i, Params(s, i)[0].V)
			}
		}
	}
}

// TestSmallSteps holds that steps far below 1 are kept.
func TestSmallSteps(t *testing.T) {
	s := &wire.SweepSpec{Method: "grid", Parameters: []wire.Parameter{{Name: "x", Distribution: "q_uniform", Min: 0, Max: 3e-14, Q: 1e-14}}}
	for i, want := range []float64{0, 1e-14, 2e-14, 3e-14} {
		if got := Params(s, uint32(i))[0].V; got != want {
			t.Errorf("point %d is %v, want %v", i, got, want)
		}
	}
	if n := Size(&wire.SweepSpec{Parameters: []wire.Parameter{{Distribution: "q_uniform", Min: 0, Max: 1e300, Q: 1e-300}}}); n < 1<<53 {
		t.Errorf("a grid without end has %d points", n)
	}
}

// TestMetricNeverReported holds that a sweep says so when its metric's name is in no report.
func TestMetricNeverReported(t *testing.T) {
	m, err := New(wire.JobSpec{Sweep: &wire.SweepSpec{Method: "grid", Metric: "loss", Command: []string{"x"}, Parameters: []wire.Parameter{{Name: "a", Values: []any{1}}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Next(9)
	m.Report(wire.Report{Metrics: map[string]float64{"los": 1}, Step: 1})
	m.Ended(jobs.End{})
	if s, code, cause, over := m.Over(); s != wire.StateDone || code != 0 || !over || cause != `no trial reported the metric "loss"` {
		t.Errorf("%v %d %q %v", s, code, cause, over)
	}
}
