//go:build linux

package collectives

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// within is how soon every rank must know that one is lost.
func within() time.Duration {
	if raceEnabled {
		return 15 * time.Second
	}
	return time.Second
}

// placements are groups to try failures on: one node, two, three; n ranks each.
var placements = [][]int{{4}, {2, 2}, {2, 1, 1}}

// mixedCrew has Go ranks, and where there is a python one Python rank, rank 2.
func mixedCrew(t *testing.T) *crew {
	c := newCrew(t, 3, 4)
	if py, ok := findPython(); ok {
		c.ranks[2] = start(t, "rank", py...)
	}
	return c
}

// TestKilledRank: a rank dies by SIGKILL in the middle of operations. Its agent says
// Abort, as it does when a process ends; every other rank, on every node, gets an error
// that names it within the bound, and again from the next operation.
func TestKilledRank(t *testing.T) {
	for _, counts := range placements {
		for _, elems := range []int{10, 300_000} { // small, and many rounds
			c := mixedCrew(t)
			g := c.form(order{}, counts...)
			for _, r := range g.ranks {
				r.tell(t, order{Do: "suite", Suite: "repeat", Args: []int{elems, 1 << 30}})
			}
			// sleep: to be somewhere in the middle; any moment will do
			time.Sleep(30 * time.Millisecond)
			const victim = 1
			if err := g.ranks[victim].cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			g.ranks[victim].hear(t) // the end of its pipe: it is dead
			g.nodeOf(victim).do(t, order{Do: "abort", Rank: victim, Cause: "killed by SIGKILL"})
			for i, r := range g.ranks {
				if i == victim {
					continue
				}
				if a := r.hear(t); a.Kind != "lost" || a.Rank != victim || !strings.Contains(a.Err, "SIGKILL") {
					t.Errorf("%v, rank %d: %+v", counts, i, a)
				}
			}
			if took := time.Since(start); took > within() {
				t.Errorf("%v: all ranks knew after %v", counts, took)
			}
			for i, r := range g.ranks {
				if i != victim {
					if a := r.do(t, order{Do: "suite", Suite: "repeat", Args: []int{elems, 1}}); a.Kind != "lost" || a.Rank != victim {
						t.Errorf("%v, rank %d, afterwards: %+v", counts, i, a)
					}
				}
			}
		}
	}
}

// TestAbortWhileAsleep: ranks that have waited for long sleep in the kernel, and are
// woken.
func TestAbortWhileAsleep(t *testing.T) {
	c := mixedCrew(t)
	g := c.form(order{}, 2, 2)
	for _, i := range []int{0, 1, 2} { // rank 3 does not call
		g.ranks[i].tell(t, order{Do: "suite", Suite: "repeat", Args: []int{10, 1}})
	}
	// sleep: until the ranks are in the kernel; were they not yet, the test would still hold
	time.Sleep(400 * time.Millisecond)
	start := time.Now()
	g.nodeOf(3).do(t, order{Do: "abort", Rank: 3, Cause: "exited with code 1"})
	for _, i := range []int{0, 1, 2} {
		if a := g.ranks[i].hear(t); a.Kind != "lost" || a.Rank != 3 {
			t.Errorf("rank %d: %+v", i, a)
		}
	}
	if took := time.Since(start); took > within() {
		t.Errorf("all ranks knew after %v", took)
	}
}

// TestLongComputation: a rank that computes while the others wait is not touched, by
// whatever time passes below the limit.
func TestLongComputation(t *testing.T) {
	c := mixedCrew(t)
	for _, counts := range placements {
		g := c.form(order{Timeout: time.Minute}, counts...)
		for i, a := range g.outcomes("wait", 1200, 3) {
			if a.Err != "" {
				t.Errorf("%v, rank %d: %s", counts, i, a.Err)
			}
		}
	}
}

// TestMismatch: ranks that call different things all get an error that names both calls,
// on whichever nodes they are.
func TestMismatch(t *testing.T) {
	c := mixedCrew(t)
	for _, counts := range placements {
		for how, words := range map[int][2]string{
			1: {"of 5000 x float32", "of 4999 x float32"},
			2: {"all-reduce (sum) of 5000 x float32", "barrier"},
			6: {"5000 x float32", "5000 x int32"},
		} {
			g := c.form(order{Timeout: time.Minute}, counts...)
			for i, a := range g.outcomes("call", 5000, 3, how) {
				if a.Kind != "mismatch" || !strings.Contains(a.Err, words[0]) || !strings.Contains(a.Err, words[1]) {
					t.Errorf("%v, way %d, rank %d: %+v", counts, how, i, a)
				}
			}
		}
	}
}

// TestNeverCalls: after the time limit all who wait get an error that names the rank
// that does not come.
func TestNeverCalls(t *testing.T) {
	c := mixedCrew(t)
	for _, counts := range placements {
		for _, elems := range []int{10, 20_000} {
			patiently(t, func(limit time.Duration) (wrong string) {
				g := c.form(order{Timeout: limit}, counts...)
				start := time.Now()
				for i, a := range g.outcomes("call", elems, 3, 3) {
					if i != 3 && (a.Kind != "timeout" || a.Rank != 3 || !strings.Contains(a.Err, "rank 3 ") || !strings.Contains(a.Err, "has not called")) {
						wrong += fmt.Sprintf("%v, rank %d: %+v\n", counts, i, a)
					}
				}
				if took := time.Since(start); took < limit {
					t.Errorf("%v: it took %v", counts, took)
				}
				if a := g.ranks[3].do(t, order{Do: "suite", Suite: "call", Args: []int{elems, -1, 0}}); a.Kind != "timeout" {
					t.Errorf("%v: the late rank gets %+v", counts, a)
				}
				return wrong
			})
		}
	}
}

// patiently tries with longer and longer time limits until nothing is wrong: on a machine
// that is busy ranks that do call may be late, too.
func patiently(t *testing.T, try func(limit time.Duration) (wrong string)) {
	t.Helper()
	for limit := 300 * time.Millisecond; ; limit *= 4 {
		wrong := try(limit)
		if wrong == "" {
			return
		}
		if limit > 10*time.Second {
			t.Fatal(wrong)
		}
	}
}

// TestNeverJoins: the same for a rank that is not even there.
func TestNeverJoins(t *testing.T) {
	c := mixedCrew(t)
	for _, counts := range placements {
		patiently(t, func(limit time.Duration) (wrong string) {
			c.absent = 3
			g := c.form(order{Timeout: limit}, counts...)
			c.absent = -1
			for i := range 3 {
				g.ranks[i].tell(t, order{Do: "suite", Suite: "repeat", Args: []int{10, 1}})
			}
			for i := range 3 {
				if a := g.ranks[i].hear(t); a.Kind != "timeout" || a.Rank != 3 || !strings.Contains(a.Err, "has not joined") {
					wrong += fmt.Sprintf("%v, rank %d: %+v\n", counts, i, a)
				}
			}
			return wrong
		})
	}
}

// TestLeaves: a rank leaves, or exits well without leaving; those that wait for it get
// an error that names it, although nothing was aborted.
func TestLeaves(t *testing.T) {
	for _, counts := range placements {
		for _, how := range []int{4, 5} {
			c := mixedCrew(t)
			g := c.form(order{Timeout: time.Minute}, counts...)
			for _, r := range g.ranks {
				r.tell(t, order{Do: "suite", Suite: "call", Args: []int{100, 3, how}})
			}
			g.ranks[3].hear(t)
			if how == 4 {
				g.nodeOf(3).do(t, order{Do: "left", Rank: 3})
			}
			for i := range 3 {
				if a := g.ranks[i].hear(t); a.Kind != "lost" || a.Rank != 3 || !strings.Contains(a.Err, "left the group") {
					t.Errorf("%v, way %d, rank %d: %+v", counts, how, i, a)
				}
			}
		}
	}
}

// TestGoodEnd: ranks that end one after the other after the last operation, and their
// agents too, disturb nobody who is still in it.
func TestGoodEnd(t *testing.T) {
	c := mixedCrew(t)
	for i := range 10 {
		counts := placements[i%len(placements)]
		g := c.form(order{}, counts...)
		for _, r := range g.ranks {
			r.tell(t, order{Do: "suite", Suite: "repeat", Args: []int{[]int{10, 50_000}[i%2], 20}})
			r.tell(t, order{Do: "leave"})
		}
		for n, agent := range g.agents {
			for r := g.nodes[n].First; r < g.nodes[n].First+g.nodes[n].Count; r++ {
				for range 2 {
					if a := g.ranks[r].hear(t); a.Err != "" {
						t.Fatalf("%v, rank %d: %s", counts, r, a.Err)
					}
				}
				agent.do(t, order{Do: "left", Rank: int(r)})
			}
			agent.do(t, order{Do: "close"})
		}
	}
}

// TestRejoin: ranks may close the group and join it again, and it goes on.
func TestRejoin(t *testing.T) {
	c := mixedCrew(t)
	g := c.form(order{}, 2, 2)
	for i := range 3 {
		g.run("repeat", 0, 10, 3+i)
		g.join()
	}
	g.run("all", 5, 3001)
}

// TestDeadAgent: the agent of another node dies; who needs it gets an error at once.
func TestDeadAgent(t *testing.T) {
	c := newCrew(t, 2, 4)
	g := c.form(order{Timeout: time.Minute}, 2, 2)
	g.run("repeat", 0, 10, 3) // the ring is up; before that, an agent that is not there yet is waited for
	for _, r := range g.ranks {
		r.tell(t, order{Do: "suite", Suite: "repeat", Args: []int{300_000, 1 << 30}})
	}
	// sleep: to be somewhere in the middle; any moment will do
	time.Sleep(30 * time.Millisecond)
	start := time.Now()
	if err := g.agents[1].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // the other node's agent will be restarted and say so: TestRestore
		if a := g.ranks[i].hear(t); a.Kind != "lost" || a.Rank != -1 || !strings.Contains(a.Err, "local-1") {
			t.Errorf("rank %d: %+v", i, a)
		}
	}
	if took := time.Since(start); took > within() {
		t.Errorf("known after %v", took)
	}
	for _, r := range g.ranks[2:] {
		_ = r.cmd.Process.Kill()
	}
}

// TestTraffic: what each node sends and gets for large vectors, as the kernel counted it.
// A star, where one node gets and sends everything, would fail.
func TestTraffic(t *testing.T) {
	const elems, times = 1 << 20, 3
	const whole = 4 * elems * times
	for _, counts := range [][]int{{1, 1}, {1, 1, 1}, {1, 1, 1, 1, 1}} {
		n := len(counts)
		c := newCrew(t, n, n)
		for code, factor := range map[int]float64{2: 2, 3: 1, 4: 1} { // all-reduce, reduce-scatter, all-gather
			g := c.form(order{}, counts...)
			g.run("traffic", 7, code, elems, times)
			in := make([]int64, n)
			limit := int64(factor * whole * float64(n-1) / float64(n) * 1.1)
			for i, a := range g.agents {
				tr := a.do(t, order{Do: "traffic"})
				var out, counted int64
				for lane, acked := range tr.Acked {
					out += acked
					counted += tr.Sent[lane]
					in[(i+1<<lane)%n] += acked
				}
				if out > limit || out < limit*8/10 {
					t.Errorf("operation %d on %d nodes: node %d sent %d bytes, the limit is %d", code, n, i, out, limit)
				}
				if counted > out || counted < out-1000 { // greetings
					t.Errorf("operation %d on %d nodes: node %d says it sent %d bytes, the kernel counted %d", code, n, i, counted, out)
				}
			}
			for i, b := range in {
				if b > limit {
					t.Errorf("operation %d on %d nodes: node %d got %d bytes, the limit is %d", code, n, i, b, limit)
				}
			}
		}
	}
}

// TestSlowLink: on links of a given rate and a delay of 15 ms the ring keeps them busy:
// several rounds are on their way at a time. With one at a time half of the time would
// be lost.
func TestSlowLink(t *testing.T) {
	const rate, elems, times = 40 << 20, 4 << 20, 1
	for _, counts := range [][]int{{1, 1}, {1, 1, 1}} {
		n := len(counts)
		c := newCrew(t, n, n)
		best := 0.0
		for end := time.Now().Add(time.Minute); best <= linkShare && time.Now().Before(end); { // a busy machine may spoil many tries
			g := c.form(order{Rate: rate}, counts...)
			g.run("repeat", 0, elems, 1)
			start := time.Now()
			g.run("repeat", 0, elems, times)
			ideal := 2 * float64(n-1) / float64(n) * 4 * elems * times / rate
			best = max(best, ideal/time.Since(start).Seconds())
		}
		t.Logf("%d nodes: %.2f of the links' rate", n, best)
		if best < linkShare {
			t.Errorf("%d nodes: the links are used to %.2f", n, best)
		}
	}
}
