package tasks

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// oneJob is the part of a room where nobody competes.
type oneJob struct{}

func (oneJob) Claim(int64, []core.Claim)                  {}
func (oneJob) Before(core.Who, core.Who) int              { return 0 }
func (oneJob) Why(int64, core.Who, wire.Resources) string { return "" }
func (oneJob) Contended() bool                            { return false }

// coreRoom is a node's room as the agent's core has it.
type coreRoom struct {
	*desk
	a *core.Core
}

func (r coreRoom) Take(now int64, w core.Who, need wire.Resources, time int64) (core.Slot, bool) {
	return r.a.TakeRoomFor(now, w, need, time)
}
func (r coreRoom) Keep(need wire.Resources, s core.Slot) { r.a.KeepRoom(need, s) }
func (r coreRoom) Give(need wire.Resources, s core.Slot) { r.a.GiveRoom(need, s) }
func (r coreRoom) Claim(now int64, all []core.Claim)     { r.a.Claim(now, all) }
func (r coreRoom) Before(a, b core.Who) int              { return r.a.Before(a, b) }
func (r coreRoom) Why(now int64, w core.Who, need wire.Resources) string {
	return r.a.WhyNot(now, w, need)
}
func (r coreRoom) Contended() bool { return r.a.Contended() }

// crowd is drivers of a job each on one node, whose tasks all take as long as their driver
// says.
type crowd struct {
	*desk
	took  map[uint32]int64 // CPU time by driver
	began map[id]int64
	takes map[uint32]int64
	most  map[uint32]int // tasks at a time
	next  map[uint32]uint64
}

func newCrowd(t *testing.T, cores int) *crowd {
	w := newDesk(t, cores)
	a := core.New(core.Config{Hello: wire.Hello{Node: "local-0", Total: w.total}}, core.NewState())
	a.Step(w.now, core.Flush{})
	w.c = New(Config{Number: 7, Node: "local-0", Cores: cores}, coreRoom{w, a}, w)
	return &crowd{desk: w, took: map[uint32]int64{}, began: map[id]int64{}, takes: map[uint32]int64{}, next: map[uint32]uint64{}, most: map[uint32]int{}}
}

// join adds a driver with n tasks.
func (w *crowd) join(client uint32, n int, takes int64, terms wire.Terms, options map[string]any) {
	w.t.Helper()
	if err := w.c.Connect(w.now, Client{ID: client, Kind: sdk.KindDriver, Language: "python", Job: fmt.Sprintf("d7-%d", client), PID: 100, Program: "python3", Terms: terms}); err != nil {
		w.t.Fatal(err)
	}
	options["name"] = fmt.Sprintf("f%d", client)
	w.shape(client, 1, options)
	w.takes[client] = takes
	w.feed(client, n)
}

func (w *crowd) feed(client uint32, n int) {
	for range n {
		w.next[client]++
		w.frame(client, sdk.MsgSubmit, submit(taskOf(client, w.next[client]), 1, 1))
	}
}

// run lets time go by in steps of a millisecond.
func (w *crowd) run(span int64) {
	for end := w.now + span; w.now < end; w.now += millisecond {
		w.take()
		for _, s := range w.starts {
			if err := w.c.Connect(w.now, Client{ID: s.ID, Kind: sdk.KindWorker, Language: "python", PID: 200}); err != nil {
				w.t.Fatal(err)
			}
		}
		w.starts = nil
		at := map[uint32]int{}
		for _, cl := range w.c.sortedClients() {
			if len(cl.levels) == 0 || len(cl.levels[0].tasks) == 0 {
				continue
			}
			l := cl.levels[0]
			t := l.tasks[0]
			x := t.id
			from := x.Client()
			w.took[from] += millisecond
			at[from]++
			w.most[from] = max(w.most[from], at[from])
			if w.began[x] == 0 {
				w.began[x] = w.now
			}
			if w.now-w.began[x] >= w.takes[from]-millisecond {
				b := result(x, t.attempt, sdk.ResultOK, inline("x"))
				binary.LittleEndian.PutUint64(b[24:], uint64(w.began[x]))
				binary.LittleEndian.PutUint64(b[32:], uint64(w.began[x]+w.takes[from]))
				w.frame(l.client.ID, sdk.MsgResult, b)
			}
		}
		if w.now%(20*millisecond) == 0 {
			w.c.Tick(w.now)
		}
	}
}

// share is the part of the time since the last call that went to a driver.
func (w *crowd) shares() map[uint32]float64 {
	all := int64(0)
	for _, v := range w.took {
		all += v
	}
	out := map[uint32]float64{}
	for k, v := range w.took {
		out[k] = float64(v) / float64(all)
	}
	clear(w.took)
	return out
}

func between(t *testing.T, what string, got, low, high float64) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %.2f, want %.2f to %.2f", what, got, low, high)
	}
}

// TestTurns: jobs that want more than there is get the same, whoever came first, however
// long their tasks are, and the room is never idle.
func TestTurns(t *testing.T) {
	for _, cores := range []int{1, 3, 8} {
		t.Run(fmt.Sprint(cores), func(t *testing.T) {
			w := newCrowd(t, cores)
			w.join(1000, 4000, 50*millisecond, wire.Terms{}, map[string]any{})
			w.run(2 * second)
			between(t, "alone", w.shares()[1000], 1, 1)
			w.join(2000, 8000, 10*millisecond, wire.Terms{}, map[string]any{})
			w.run(500 * millisecond)
			w.shares()
			w.run(4 * second)
			used := float64(w.took[1000]+w.took[2000]) / float64(int64(cores)*4*second)
			between(t, "in use", used, 0.9, 1)
			between(t, "of two", w.shares()[2000], 0.42, 0.58)
			w.join(3000, 4000, 30*millisecond, wire.Terms{}, map[string]any{})
			w.run(500 * millisecond)
			w.shares()
			w.run(6 * second)
			for k, v := range w.shares() {
				between(t, fmt.Sprintf("driver %d of three", k), v, 0.26, 0.41)
			}
		})
	}
}

// TestShortTurns: tasks that are sent ahead share, too.
func TestShortTurns(t *testing.T) {
	w := newCrowd(t, 2)
	w.join(1000, 20000, millisecond, wire.Terms{}, map[string]any{})
	w.run(second)
	w.join(2000, 20000, millisecond, wire.Terms{}, map[string]any{})
	w.run(100 * millisecond)
	w.shares()
	w.run(2 * second)
	between(t, "of two", w.shares()[2000], 0.42, 0.58)
}

// TestPriorityFirst: what has a higher priority has all that it can use.
func TestPriorityFirst(t *testing.T) {
	w := newCrowd(t, 4)
	w.join(1000, 4000, 50*millisecond, wire.Terms{}, map[string]any{})
	w.run(second)
	w.join(2000, 60, 50*millisecond, wire.Terms{Priority: 1}, map[string]any{})
	w.run(100 * millisecond)
	w.shares()
	for range 20 {
		w.run(25 * millisecond)
		for _, x := range w.c.Tasks(wire.SDKTaskQuery{States: []string{wire.TaskQueued}, Name: "f1000", Limit: 1}).Tasks {
			if !strings.Contains(x.Why, "it is the turn of program d7-2000, of priority 1") {
				t.Fatalf("at %d ms the other %s", w.now/millisecond, x.Why)
			}
		}
	}
	between(t, "the urgent one", w.shares()[2000], 1, 1)
	w.run(second)
	w.shares()
	w.run(second)
	between(t, "what it left", w.shares()[1000], 1, 1)
}

// TestLargeTurn: a task that wants much is not passed by for ever by small ones.
func TestLargeTurn(t *testing.T) {
	w := newCrowd(t, 4)
	w.join(1000, 4000, 50*millisecond, wire.Terms{}, map[string]any{})
	w.run(second)
	w.join(2000, 1, 50*millisecond, wire.Terms{}, map[string]any{"cpu": 4 * wire.Unit})
	w.run(2 * second)
	if w.took[2000] == 0 {
		t.Fatal("it has not run")
	}
}
