package agent

import (
	"context"
	"time"

	"launcher/internal/errs"
)

const (
	// sweepAfter is how long after the end of a process what it left behind is looked for:
	// long enough for what it started last to be there, and for its children to end too.
	sweepAfter = time.Second
	// sweepEvery bounds how often: it costs a look at every process below the supervisor.
	sweepEvery = 5 * time.Second
)

// sweep kills what ended processes leave behind, as batch systems do: the group goes with
// its process, and what had left the group by setsid goes here. A program that is to live
// on belongs into a job of its own.
func (a *agent) sweep(ctx context.Context) {
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		select {
		case <-a.ends:
		case <-ctx.Done():
			return
		}
		if !wait(sweepAfter) {
			return
		}
		select { // ends until now are looked at now
		case <-a.ends:
		default:
		}
		within, cancel := context.WithTimeout(ctx, signalBound)
		n, err := a.super.Sweep(within)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case errs.Is(err, errs.Lost): // all is over
		case err != nil:
			a.log.Warn("what ended processes left behind is not looked for", "err", err)
		case n > 0:
			a.log.Info("processes that outlived their tasks were killed", "count", n)
		}
		if !wait(sweepEvery - sweepAfter) {
			return
		}
	}
}
