package tasks

import (
	"fmt"
	"testing"
)

// What the simulation is there to find. Each of these mistakes was made on purpose, and fails the
// test that is named (TestActorsOverNodes unless another is; with SIM_SEEDS=3 at most):
//
//   - calls are not fenced by the attempt of the creation: order
//   - the host's 30 s are off, or the owner does not hold an exclusive actor back, or an actor that
//     PeerKeep does not name lives on: an exclusive actor in two places
//   - an agent counts as heard once it is connected: TestExclusiveActorEndsInTime
//   - a host that cannot be reached is taken for the end of its actors: calls without end
//   - an owner that cannot be reached is taken for the death of its actors: TestActorOwnerOutOfReach
//   - a host runs a call again by itself that asked for it: more runs than retries
//   - a bounce that was said before is said again of the next sending: TestCallBouncedAndSentAgain
//   - an item of a stream is taken before those that were lost: a lost item
//   - PeerEnd ends what has ended: uses of objects that are not counted

// TestActorsOverNodes: as TestActorPrograms, with actors on both of two nodes that call each
// other, and connections between the nodes that break for up to a minute.
func TestActorsOverNodes(t *testing.T) {
	for _, k := range []struct {
		name string
		faults
		cutting, seeds int
	}{
		{name: "peace", seeds: 5},
		{name: "workers die", faults: faults{crash: 2}, seeds: 5},
		{name: "agents die", faults: faults{restart: 2}, seeds: 8},
		{name: "the network breaks", cutting: 2, seeds: 12},
		{name: "all", faults: faults{crash: 1, restart: 1, away: 1, lose: 1}, cutting: 2, seeds: 12},
	} {
		t.Run(k.name, func(t *testing.T) {
			sum, there, broken := newLedger(t), 0, 0
			for seed := range uint64(seeds(k.seeds)) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					p := newSimPair(t, seed, 2, 16)
					l := newLedger(t)
					var over []func() bool
					for i, s := range p.nodes {
						s.ledger, s.faults = l, k.faults
						_, a := s.main("a", 3, 30)
						over = append(over, a)
						if i == 0 {
							_, b := s.main("b", 3, 15)
							over = append(over, b)
						}
					}
					p.cutting = k.cutting
					p.finish(over...)
					p.end()
					sum.add(l)
					broken += p.broken
					for _, s := range p.nodes {
						there += s.given
					}
				})
			}
			t.Logf("%v; %d tasks given to the other node, %d cuts", sum, there, broken)
		})
	}
}
