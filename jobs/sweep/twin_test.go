package sweep

import (
	"bytes"
	"maps"
	"math"
	"math/rand"
	"reflect"
	"slices"
	"testing"

	"launcher/jobs"
	"launcher/wire"
)

// TestTwins drives searches at random, and at every step one made again from a snapshot
// beside: the two must answer the same and stay the same.
func TestTwins(t *testing.T) {
	for seed := range int64(25) {
		r := rand.New(rand.NewSource(seed))
		target := -0.9
		spec := wire.JobSpec{RetryFailed: r.Intn(3), Sweep: &wire.SweepSpec{Method: "random", RunCap: 1 + r.Intn(30), Metric: "l",
			Maximize: r.Intn(2) == 0, Concurrent: r.Intn(5), Command: []string{"x"}, Parameters: []wire.Parameter{{Name: "a", Distribution: "uniform", Max: 1}}}}
		if r.Intn(2) == 0 {
			spec.Sweep.Early = &wire.EarlySpec{Type: "asha", MinIter: 1, MaxIter: int64(1 + r.Intn(30)), Eta: int64(2 + r.Intn(3))}
		}
		if r.Intn(3) == 0 {
			spec.Sweep.Target = &target
		}
		m, err := New(spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		live, over := map[uint32]int64{}, false
		for step := 0; step < 2000 && !over; step++ {
			snap := m.Snapshot()
			twin, err := New(spec, snap)
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			var x, y any
			keys := slices.Sorted(maps.Keys(live))
			switch op := r.Intn(10); {
			case op < 3 || len(live) == 0:
				n := 1 + r.Intn(4)
				p := m.Next(n)
				for _, s := range p {
					live[s.Index] = 0
				}
				x, y = p, twin.Next(n)
			case op < 8:
				i := keys[r.Intn(len(keys))]
				live[i] += int64(r.Intn(3))
				v := []float64{r.NormFloat64(), r.NormFloat64(), r.NormFloat64(), math.NaN(), math.Inf(1), math.Inf(-1)}[r.Intn(6)]
				rep := wire.Report{Step: live[i], Metrics: map[string]float64{"l": v}}
				rep.Proc.Index, rep.Proc.Rank = i, uint32(r.Intn(2)*r.Intn(2))
				x, y = m.Report(rep), twin.Report(rep)
			default:
				i := keys[r.Intn(len(keys))]
				e := jobs.End{Index: i, Code: int32(r.Intn(3)), Lost: r.Intn(8) == 0, Left: r.Intn(5) == 0}
				if r.Intn(15) == 0 {
					e.Reason = wire.ReasonCancelled
				}
				v := m.Ended(e)
				if v != jobs.Retry {
					delete(live, i)
				}
				x, y = v, twin.Ended(e)
			}
			state, code, cause, ended := m.Over()
			state2, code2, cause2, ended2 := twin.Over()
			if !reflect.DeepEqual(x, y) || !bytes.Equal(m.Snapshot(), twin.Snapshot()) || state != state2 || code != code2 || cause != cause2 || ended != ended2 {
				t.Fatalf("seed %d, step %d: %v and %v, %q and %q", seed, step, x, y, cause, cause2)
			}
			if ended && len(live) > 0 {
				t.Fatalf("seed %d, step %d: over while %d trials run", seed, step, len(live))
			}
			over = ended
		}
		if !over {
			t.Errorf("seed %d: not over after 2000 steps", seed)
		}
	}
}
