package tasks

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// TestActorPrograms: what programs with actors are told agrees with what happened, whatever
// is killed, and nothing is left of them.
func TestActorPrograms(t *testing.T) {
	for _, k := range []struct {
		name string
		faults
		workers, seeds int
	}{
		{name: "peace", seeds: 10},
		{name: "workers die", faults: faults{crash: 2}, seeds: 20},
		{name: "the agent dies", faults: faults{restart: 3}, seeds: 20},
		{name: "connections break", faults: faults{away: 3}, seeds: 10},
		{name: "objects are lost", faults: faults{lose: 5}, seeds: 10},
		{name: "all", workers: 6, faults: faults{crash: 2, restart: 2, away: 2, lose: 2, spill: 2}, seeds: 20},
	} {
		t.Run(k.name, func(t *testing.T) {
			sum := newLedger(t)
			for seed := range uint64(seeds(k.seeds)) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					s := newSim(t, seed, 2)
					if k.workers > 0 {
						s.cfg.MaxWorkers, s.c.cfg.MaxWorkers = k.workers, k.workers
					}
					s.ledger = newLedger(t)
					_, a := s.main("a", 3, 30)
					_, b := s.main("a", 3, 30)
					s.faults = k.faults
					s.finish(a, b)
					s.end()
					sum.add(s.ledger)
				})
			}
			t.Log(sum)
		})
	}
}

// seeds is how many schedules are run: more with SIM_SEEDS, so many times as many.
func seeds(n int) int {
	more, _ := strconv.Atoi(os.Getenv("SIM_SEEDS"))
	return n * max(1, more)
}

func (l *ledger) add(o *ledger) {
	l.lives += o.lives
	l.calls += o.calls
	l.twice += o.twice
	for c, n := range o.codes {
		l.codes[c] += n
	}
}

func (l *ledger) String() string {
	return fmt.Sprintf("%d lives of actors, %d calls begun, %d of them again, errors %v", l.lives, l.calls, l.twice, l.codes)
}
