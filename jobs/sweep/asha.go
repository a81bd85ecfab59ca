package sweep

import (
	"math"
	"sort"

	"launcher/wire"
)

// worst is the metric of a trial that failed: after everything that was measured.
const worst = math.MaxFloat64

// rungs are the steps at which a trial is compared with those that came as far: for
// k = 0 .. n-1, max(1, floor(units/eta^(n-k-1))).
func rungs(n int, units, eta int64) []int64 {
	out := make([]int64, n)
	for k := range out {
		u := units
		for range n - k - 1 {
			u /= eta
		}
		out[k] = max(1, u)
	}
	return out
}

// rungCount is how many rungs lie between least and most steps.
func rungCount(least, most, eta int64) int {
	n := 1
	for most/eta >= max(least, 1) {
		most /= eta
		n++
	}
	return n
}

// asha is the stopping form of asynchronous successive halving: nobody is ever paused,
// a trial that reaches a rung goes on if it is among the best 1/eta that reached it so
// far. The last rung is the end of every trial.
type asha struct {
	units   []int64     // of each rung, ascending
	eta     int64       //
	metrics [][]float64 // of each rung, sorted: smaller is better
}

func newASHA(e *wire.EarlySpec) *asha {
	if e == nil {
		return nil
	}
	eta := max(e.Eta, 2)
	n := rungCount(e.MinIter, e.MaxIter, eta)
	return &asha{units: rungs(n, e.MaxIter, eta), eta: eta, metrics: make([][]float64, n)}
}

// insert puts a metric into rung k and reports whether its trial goes on.
func (a *asha) insert(k int, metric float64) bool {
	m := a.metrics[k]
	i := sort.Search(len(m), func(i int) bool { return m[i] > metric })
	m = append(m, 0)
	copy(m[i+1:], m[i:])
	m[i] = metric
	a.metrics[k] = m
	return k < len(a.units)-1 && int64(i) < max(int64(len(m))/a.eta, 1)
}
