// Package benchcore measures tasks, objects, actors and channels as a Go program sees them: the workloads of
// Ray's microbenchmark and of its single-node envelope, by the same definitions, in Go.
//
// Its functions run in workers that are the program itself: a program that imports it
// calls launcher.Main before anything else when it is started as a worker, that is with
// LAUNCHER_WORKER in its environment, and calls Run in what launcher.Main runs.
package benchcore

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"launcher"
	"launcher/internal/errs"
)

// Row is one figure.
type Row struct {
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Sd     float64 `json:"sd"`               // of the rounds
	Limit  float64 `json:"limit,omitempty"`  // the physical limit in the same unit, of the same run
	Of     string  `json:"of,omitempty"`     // what the limit is
	Target float64 `json:"target,omitempty"` // value to reach, or with a limit the share of it
	Less   bool    `json:"less,omitempty"`   // less is better
}

// Options say how long and what to measure.
type Options struct {
	Filter string        // only rows whose name has it in it
	Rounds int           // of a rate; 0 = 4
	Round  time.Duration // 0 = 2 s
	Warm   time.Duration // before the first round; 0 = 1 s
	Scale  float64       // of the big workloads: 1 = as Ray has them; 0 = 1
	Emit   func(Row)     // as they come; nil = none
}

// workload is one of them. A rate has a step, which does units at a time; an envelope
// does all of its own and gives the row.
type workload struct {
	what   string
	unit   string
	target float64
	units  float64
	step   func(ctx context.Context, b *bench) error
	once   func(ctx context.Context, b *bench) (Row, error)
}

// Run measures. The rows so far come with an error.
func Run(ctx context.Context, o Options) ([]Row, error) {
	if o.Rounds == 0 {
		o.Rounds = 4
	}
	if o.Round == 0 {
		o.Round = 2 * time.Second
	}
	if o.Warm == 0 {
		o.Warm = time.Second
	}
	if o.Scale == 0 {
		o.Scale = 1
	}
	b := &bench{o: o}
	var rows []Row
	for _, w := range slices.Concat(workloads, actorWorkloads, channelWorkloads) {
		if !strings.Contains(w.what, o.Filter) {
			continue
		}
		var row Row
		var err error
		if w.once != nil {
			row, err = w.once(ctx, b)
		} else {
			row, err = b.rate(ctx, w)
		}
		if err != nil {
			return rows, errs.Wrap(errs.Unknown, err, "workload %s", w.what)
		}
		row.What = w.what
		rows = append(rows, row)
		if o.Emit != nil {
			o.Emit(row)
		}
	}
	return rows, nil
}

// Names lists the workloads.
func Names() []string {
	var out []string
	for _, w := range slices.Concat(workloads, actorWorkloads, channelWorkloads) {
		out = append(out, w.what)
	}
	return out
}

// bench is a run of them.
type bench struct {
	o      Options
	actors map[int]launcher.Handle[*echo] // by how many calls they run at a time
}

// scaled is a number of a big workload.
func (b *bench) scaled(n int) int { return max(1, int(float64(n)*b.o.Scale)) }

// rate repeats a workload's step: warm for a while, then in rounds; the figure is the mean
// of the rounds.
func (b *bench) rate(ctx context.Context, w workload) (Row, error) {
	calls := 0
	for begin := time.Now(); time.Since(begin) < b.o.Warm; calls++ {
		if err := w.step(ctx, b); err != nil {
			return Row{}, err
		}
	}
	step := calls/10 + 1
	var rates []float64
	for range b.o.Rounds {
		begin, n := time.Now(), 0
		for time.Since(begin) < b.o.Round {
			for range step {
				if err := w.step(ctx, b); err != nil {
					return Row{}, err
				}
			}
			n += step
		}
		rates = append(rates, w.units*float64(n)/time.Since(begin).Seconds())
	}
	return Row{Value: mean(rates), Sd: deviation(rates), Unit: w.unit, Target: w.target}, nil
}

func mean(v []float64) float64 {
	s := 0.0
	for _, x := range v {
		s += x
	}
	return s / float64(len(v))
}

func deviation(v []float64) float64 {
	m, s := mean(v), 0.0
	for _, x := range v {
		s += (x - m) * (x - m)
	}
	return math.Sqrt(s / float64(len(v)))
}

// memcpy is how fast this machine copies b to another place that has been written before,
// in GB/s: the best of several.
func memcpy(b []int64) float64 {
	to := make([]int64, len(b))
	var took []time.Duration
	for range 4 {
		begin := time.Now()
		copy(to, b)
		took = append(took, time.Since(begin))
	}
	return 8 * float64(len(b)) / slices.Min(took[1:]).Seconds() / 1e9
}
