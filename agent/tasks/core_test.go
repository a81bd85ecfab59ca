package tasks

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// desk is a node for tests: room, memory, and workers that say and do what a test wants.
type desk struct {
	oneJob
	t      testing.TB
	c      *Core
	now    int64
	free   wire.Resources
	total  wire.Resources
	sealed map[id]bool
	log    []byte
	starts []StartWorker
	stops  []StopWorker
	frees  []id
	fx     []Effect
	wills  []Effect
	in     map[uint32][]frame

	slots    map[wire.LeaseID]int // of leases that it has given
	borrow   uint32               // its client for references to the other node's objects
	borrowAt uint32
	group    wire.GroupID
	kept     string   // what all of its room is kept for
	pulled   []uint32 // from which nodes
	owned    []id
	other    uint32 // the node that keeps copies
}

type frame struct {
	typ  uint16
	body []byte
}

func newDesk(t testing.TB, cores int) *desk {
	w := &desk{t: t, now: 1e9, sealed: map[id]bool{}, in: map[uint32][]frame{}}
	w.total = wire.Resources{CPU: int64(cores) * wire.Unit, Memory: 1 << 40}
	w.free = w.total
	w.c = New(Config{Number: 7, Node: "local-0", Cores: cores}, w, w)
	return w
}

func (w *desk) Take(_ int64, _ core.Who, need wire.Resources, _ int64) (core.Slot, bool) {
	if !w.free.Fits(need) || w.kept != "" {
		return core.Slot{}, false
	}
	w.free = w.free.Add(need, -1)
	return core.Slot{}, true
}
func (w *desk) Keep(need wire.Resources, _ core.Slot) { w.free = w.free.Add(need, -1) }
func (w *desk) Give(need wire.Resources, _ core.Slot) {
	w.free = w.free.Add(need, 1)
	if w.free.CPU > w.total.CPU {
		w.t.Fatalf("more room than there is: %s of %s", w.free, w.total)
	}
}
func (w *desk) TakeGroup(s *wire.Strategy, need wire.Resources) (core.Slot, bool) {
	if !w.HasGroup(s) {
		return core.Slot{}, false
	}
	slot, ok := w.Take(0, core.Who{}, need, 0)
	slot.Bundle = wire.BundleID{Group: s.Group}
	return slot, ok
}
func (w *desk) HasGroup(s *wire.Strategy) bool { return w.group == s.Group }
func (w *desk) Lend(string, bool)              {}
func (w *desk) Yields(int64, int64) bool       { return w.kept != "" && w.free.CPU < w.total.CPU }
func (w *desk) KeptFor(int64) string           { return w.kept }
func (w *desk) Could(need wire.Resources) bool { return w.total.Fits(need) }
func (w *desk) Total() wire.Resources          { return w.total }
func (w *desk) Own(x id)                       { w.owned = append(w.owned, x) }
func (w *desk) Resident(x id) bool             { return w.sealed[x] }
func (w *desk) Seal(_ uint32, x id, _ byte, _ uint32, off, size int64) error {
	if off < 0 {
		return errs.New(errs.Invalid, "a bad place")
	}
	w.sealed[x] = true
	return nil
}

// take lets the reactor settle and sorts out what came of it.
func (w *desk) take() {
	out := w.c.Take(w.now)
	w.log = append(w.log, out.Records...)
	for _, e := range out.Effects {
		switch e := e.(type) {
		case StartWorker:
			w.starts = append(w.starts, e)
		case StopWorker:
			w.stops = append(w.stops, e)
		case Free:
			w.frees = append(w.frees, e.IDs...)
		default:
			w.fx = append(w.fx, e)
		}
	}
	for _, s := range out.Sends {
		for b := s.Frames; len(b) > 0; {
			n := int(binary.LittleEndian.Uint32(b)) + 4
			w.in[s.Client] = append(w.in[s.Client], frame{binary.LittleEndian.Uint16(b[4:]), append([]byte(nil), b[8:n]...)})
			b = b[n:]
		}
	}
	w.c.Sent()
}

func (w *desk) driver(client uint32) {
	if err := w.c.Connect(w.now, Client{ID: client, Kind: sdk.KindDriver, Language: "python", Job: "d1", PID: 100, Program: "python3"}); err != nil {
		w.t.Fatal(err)
	}
	w.shape(client, 1, map[string]any{"name": "f"})
}

func (w *desk) shape(client, n uint32, o map[string]any) {
	w.frame(client, sdk.MsgShape, append(le32(n), wire.Marshal(o)...))
}

func (w *desk) frame(client uint32, typ uint16, body []byte) {
	w.t.Helper()
	if err := w.c.Frame(w.now, client, typ, body); err != nil {
		w.t.Fatalf("frame %#x: %v", typ, err)
	}
}

// startAll brings up the workers that were ordered.
func (w *desk) startAll() {
	for _, s := range w.starts {
		if err := w.c.Connect(w.now, Client{ID: s.ID, Kind: sdk.KindWorker, PID: 1000 + int(s.ID)}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.starts = nil
	w.take()
}

func le32(v uint32) []byte { return append32(make([]byte, 0, 4), v) }

func taskOf(client uint32, n uint64) id { return wire.NewObjectID(7, client, n, 0) }

func submit(x id, shape, returns uint32, deps ...id) []byte {
	b := append([]byte(nil), x[:]...)
	b = append(b, make([]byte, 16)...)
	for _, v := range []uint32{shape, returns, 0, uint32(len(deps)), 0} {
		b = append(b, le32(v)...)
	}
	for _, d := range deps {
		b = append(b, d[:]...)
	}
	return append(b, "args"...)
}

func result(x id, attempt, status uint32, values ...[]byte) []byte {
	b := append([]byte(nil), x[:]...)
	b = append(b, le32(attempt)...)
	b = append(b, le32(status)...)
	b = append(b, make([]byte, 16)...)
	b = append(b, le32(uint32(len(values)))...)
	for _, v := range values {
		b = append(b, v...)
	}
	return b
}

func inline(s string) []byte {
	return sdk.AppendValue(nil, sdk.Inline, 0, nil, int64(len(s)), []byte(s))
}

func shared() []byte {
	b := sdk.AppendValue(nil, sdk.Shared, 0, nil, 1<<20, nil)
	return append(b, make([]byte, 16)...)
}

func get(flags uint32, ids ...id) []byte {
	b := append(le32(flags), 0, 0, 0, 0)
	for _, x := range ids {
		b = append(b, x[:]...)
	}
	return b
}

// execs takes the Exec frames that a worker got.
func (w *desk) execs(worker uint32) (out []id, attempts []uint32) {
	var rest []frame
	for _, f := range w.in[worker] {
		if f.typ == sdk.MsgExec {
			out = append(out, id(f.body[:16]))
			attempts = append(attempts, u32(f.body[32:]))
		} else {
			rest = append(rest, f)
		}
	}
	w.in[worker] = rest
	return out, attempts
}

// objects takes the Object frames that a client got: id to kind and bytes.
func (w *desk) objects(client uint32) map[id]string {
	out := map[id]string{}
	var rest []frame
	for _, f := range w.in[client] {
		if f.typ == sdk.MsgObject {
			out[id(f.body[:16])] = fmt.Sprintf("%d %s", f.body[16], f.body[16+16+16*int(u32(f.body[20:])):])
		} else {
			rest = append(rest, f)
		}
	}
	w.in[client] = rest
	return out
}

func TestCallAndResult(t *testing.T) {
	w := newDesk(t, 2)
	w.driver(1)
	x := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
	w.frame(1, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, x.With(1)))
	w.take()
	if len(w.starts) != 1 {
		t.Fatalf("%d workers ordered", len(w.starts))
	}
	worker := w.starts[0].ID
	w.startAll()
	got, attempts := w.execs(worker)
	if len(got) != 1 || got[0] != x || attempts[0] != 1 {
		t.Fatalf("the worker got %v %v", got, attempts)
	}
	w.frame(worker, sdk.MsgResult, result(x, 1, 0, inline("ok")))
	w.frame(worker, sdk.MsgResult, result(x, 1, 0, inline("twice")))
	w.take()
	if o := w.objects(1); o[x.With(1)] != "1 ok" {
		t.Fatalf("the driver got %q", o)
	}
	if w.free.CPU != w.total.CPU {
		t.Fatalf("room is not given back: %s", w.free)
	}
	r := x.With(1)
	w.frame(1, sdk.MsgRelease, r[:])
	w.take()
	if len(w.c.objects) != 0 || len(w.c.tasks) != 0 {
		t.Fatalf("left: %d objects, %d tasks", len(w.c.objects), len(w.c.tasks))
	}
}

func TestArgumentsAreWaitedForAndErrorsPassedOn(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	a, b, c := taskOf(1, 1), taskOf(1, 2), taskOf(1, 3)
	w.frame(1, sdk.MsgSubmit, submit(a, 1, 1))
	w.frame(1, sdk.MsgSubmit, submit(b, 1, 1, a.With(1)))
	w.frame(1, sdk.MsgSubmit, submit(c, 1, 1, b.With(1)))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	if got, _ := w.execs(worker); len(got) != 1 || got[0] != a {
		t.Fatalf("first %v", got)
	}
	w.frame(worker, sdk.MsgResult, result(a, 1, 0, inline("1")))
	w.take()
	if got, _ := w.execs(worker); len(got) != 1 || got[0] != b {
		t.Fatalf("then %v", got)
	}
	bad := sdk.AppendValue(nil, sdk.Failure, 1, nil, 3, []byte("bad"))
	w.frame(worker, sdk.MsgResult, result(b, 1, 1, bad))
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, c.With(1)))
	w.take()
	if o := w.objects(1); o[c.With(1)] != "3 bad" {
		t.Fatalf("the error is not passed on: %q", o)
	}
}

func TestWorkerDeathRetriesThenFails(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 2, map[string]any{"name": "g", "max_retries": 1})
	x := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(x, 2, 1))
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
	w.take()
	for try := range 2 {
		worker := w.starts[0].ID
		w.startAll()
		if _, a := w.execs(worker); len(a) != 1 || a[0] != uint32(try+1) {
			t.Fatalf("try %d: attempts %v", try, a)
		}
		w.c.Gone(w.now, worker, "killed by signal 9")
		w.take()
	}
	if o := w.objects(1)[x.With(1)]; len(o) == 0 || o[0] != '3' {
		t.Fatalf("got %q", o)
	}
	if w.free.CPU != w.total.CPU {
		t.Fatalf("room: %s", w.free)
	}
}

func TestRecursionDeeperThanWorkers(t *testing.T) {
	w := newDesk(t, 1)
	w.c.cfg.MaxWorkers = 4
	w.driver(1)
	const depth = 50
	next := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(next, 1, 1))
	w.take()
	w.startAll()
	var chain []struct {
		worker uint32
		task   id
	}
	for d := range depth {
		var at uint32
		for cl := range w.in {
			if got, _ := w.execs(cl); len(got) > 0 {
				at = cl
				if got[0] != next {
					t.Fatalf("depth %d: %v", d, got)
				}
			}
		}
		if at == 0 {
			t.Fatalf("depth %d: nobody runs task %s: %s", d, next, w.c.why(w.c.tasks[next]))
		}
		chain = append(chain, struct {
			worker uint32
			task   id
		}{at, next})
		child := taskOf(at, uint64(d+1))
		w.shape(at, 1, map[string]any{"name": "f"})
		w.frame(at, sdk.MsgSubmit, submit(child, 1, 1))
		w.frame(at, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, child.With(1)))
		w.take()
		w.startAll()
		next = child
	}
	if w.c.workers > 4 {
		t.Fatalf("%d workers", w.c.workers)
	}
	last := w.c.tasks[next]
	w.frame(last.worker().ID, sdk.MsgResult, result(next, 1, 0, inline("r")))
	w.take()
	for i := len(chain) - 1; i >= 0; i-- {
		w.frame(chain[i].worker, sdk.MsgResult, result(chain[i].task, 1, 0, inline("r")))
		w.take()
	}
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, chain[0].task.With(1)))
	w.take()
	if o := w.objects(1)[chain[0].task.With(1)]; o != "1 r" {
		t.Fatalf("got %q", o)
	}
	if w.free.CPU != w.total.CPU {
		t.Fatalf("room: %s", w.free)
	}
}

func TestLostSharedResultIsMadeAgain(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	a, b := taskOf(1, 1), taskOf(1, 2)
	w.frame(1, sdk.MsgSubmit, submit(a, 1, 1))
	w.frame(1, sdk.MsgSubmit, submit(b, 1, 1, a.With(1)))
	ra := a.With(1)
	w.frame(1, sdk.MsgRelease, ra[:])
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.execs(worker)
	w.frame(worker, sdk.MsgResult, result(a, 1, 0, shared()))
	w.take()
	w.execs(worker)
	w.frame(worker, sdk.MsgResult, result(b, 1, 0, shared()))
	w.take()
	if len(w.frees) != 1 || w.frees[0] != ra {
		t.Fatalf("freed: %v", w.frees)
	}
	w.c.Lost(w.now, b.With(1), "its file is damaged")
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, b.With(1)))
	w.take()
	if got, at := w.execs(worker); len(got) != 1 || got[0] != a || at[0] != 2 {
		t.Fatalf("made again: %v %v", got, at)
	}
	w.frame(worker, sdk.MsgResult, result(a, 2, 0, shared()))
	w.take()
	if got, _ := w.execs(worker); len(got) != 1 || got[0] != b {
		t.Fatalf("made again: %v", got)
	}
	w.frame(worker, sdk.MsgResult, result(b, 2, 0, shared()))
	w.take()
	if o := w.objects(1)[b.With(1)]; len(o) == 0 || o[0] != '2' {
		t.Fatalf("got %q", o)
	}
}

// TestCancelledAheadIsNotCounted: a task that was sent ahead, cancelled and handed back is
// in no queue.
func TestCancelledAheadIsNotCounted(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	a, b, c := taskOf(1, 1), taskOf(1, 2), taskOf(1, 3)
	w.frame(1, sdk.MsgSubmit, submit(a, 1, 1))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.frame(worker, sdk.MsgResult, result(a, 1, 0, inline("quick")))
	w.frame(1, sdk.MsgSubmit, submit(b, 1, 1))
	w.frame(1, sdk.MsgSubmit, submit(c, 1, 1))
	w.take()
	if w.c.tasks[c].state != running {
		t.Fatal("it was not sent ahead")
	}
	shape, seq := w.c.tasks[c].shape, w.c.tasks[c].seq
	w.c.cancel(c, 0)
	w.frame(worker, sdk.MsgHandBack, le32(seq))
	if n := shape.queue.n; n != 0 || w.c.queued != 0 || w.c.tasks[c] != nil {
		t.Fatalf("%d tasks are counted, of %d bytes", n, w.c.queued)
	}
}

func TestUnknownObjectIsAnErrorAtOnce(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	for _, x := range []id{taskOf(1, 99).With(1), {}} { // no node has number 0
		w.frame(1, sdk.MsgGet, get(sdk.GetValue|sdk.GetBlocks, x))
		w.take()
		if o := w.objects(1)[x]; len(o) == 0 || o[0] != '3' {
			t.Errorf("of %s: %q", x, o)
		}
	}
}

func TestNothingIsLeftOfADriver(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	for n := range uint64(100) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, n+1), 1, 1))
	}
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.c.Gone(w.now, 1, "exited")
	w.take()
	w.c.Gone(w.now, worker, "killed")
	w.take()
	if len(w.c.objects) != 0 || len(w.c.tasks) != 0 || len(w.c.clients) != 0 || w.c.queued != 0 || w.c.running != 0 || w.free.CPU != w.total.CPU {
		t.Fatalf("left: %d objects, %d tasks, %d clients, %d bytes, %d running, %s", len(w.c.objects), len(w.c.tasks), len(w.c.clients), w.c.queued, w.c.running, w.free)
	}
}

// TestRestartGoesOn: the agent is killed in the middle; the log gives the same tasks, and
// a snapshot of the state the same again.
func TestRestartGoesOn(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		w := newDesk(t, 1)
		w.driver(1)
		var ids []id
		for n := range uint64(10) {
			ids = append(ids, taskOf(1, n+1))
			w.frame(1, sdk.MsgSubmit, submit(ids[n], 1, 1))
		}
		w.take()
		worker := w.starts[0].ID
		w.startAll()
		got, _ := w.execs(worker)
		w.frame(worker, sdk.MsgResult, result(got[0], 1, 0, inline("0")))
		w.take()
		old, log := w, w.log
		w = newDesk(t, 1)
		if snapshot {
			log = nil
			for _, b := range old.c.Snapshot() {
				log = append(log, b...)
			}
		}
		if err := w.c.Restore(log); err != nil {
			t.Fatal(err)
		}
		w.c.Resume(w.now)
		w.c.Back(w.now, 1)
		w.c.Back(w.now, worker)
		w.frame(1, sdk.MsgSubmit, submit(ids[9], 1, 1)) // sent again
		w.frame(1, sdk.MsgGet, get(sdk.GetValue, objectsOf(ids)...))
		w.take()
		for range 10 {
			got, at := w.execs(worker)
			for i, x := range got {
				w.frame(worker, sdk.MsgResult, result(x, at[i], 0, inline("again")))
			}
			w.take()
		}
		o := w.objects(1)
		if len(o) != 10 || o[ids[0].With(1)] != "1 0" || o[ids[9].With(1)] != "1 again" {
			t.Fatalf("snapshot %v: got %q", snapshot, o)
		}
		if w.free.CPU != w.total.CPU {
			t.Fatalf("room: %s", w.free)
		}
	}
}

func objectsOf(ts []id) (out []id) {
	for _, t := range ts {
		out = append(out, t.With(1))
	}
	return out
}

func FuzzFrame(f *testing.F) {
	f.Add(uint16(sdk.MsgSubmit), submit(taskOf(1, 1), 1, 1))
	f.Add(uint16(sdk.MsgResult), result(taskOf(1, 1), 1, 0, inline("x")))
	f.Add(uint16(sdk.MsgPut), append(taskOf(1, 5).With(wire.PutIndex).Bytes(), inline("x")...))
	f.Fuzz(func(t *testing.T, typ uint16, body []byte) {
		w := newDesk(t, 1)
		w.driver(1)
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, 1), 1, 1))
		_ = w.c.Frame(w.now, 1, typ, body)
		w.take()
	})
}

func BenchmarkTask(b *testing.B) {
	w := newDesk(b, 2)
	w.driver(1)
	w.frame(1, sdk.MsgSubmit, submit(taskOf(1, 1), 1, 1))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.frame(worker, sdk.MsgResult, result(taskOf(1, 1), 1, 0, inline("ok")))
	w.take()
	b.ReportAllocs()
	n := uint64(1)
	for b.Loop() {
		n++
		x := taskOf(1, n)
		w.frame(1, sdk.MsgSubmit, submit(x, 1, 1))
		w.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
		if n%64 == 0 {
			w.c.Take(w.now)
			w.c.Sent()
			for k := n - 63; k <= n; k++ {
				x := taskOf(1, k)
				t := w.c.tasks[x]
				if t == nil || t.state != running {
					continue
				}
				w.frame(t.worker().ID, sdk.MsgResult, result(x, 1, 0, inline("ok")))
				r := x.With(1)
				w.frame(1, sdk.MsgRelease, r[:])
			}
			w.c.Take(w.now)
			w.c.Sent()
		}
	}
}

// TestStarvedWorker: the kernel's kill for want of memory has an error of its own.
func TestStarvedWorker(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.shape(1, 2, map[string]any{"name": "hungry", "max_retries": 0})
	x := taskOf(1, 1)
	w.frame(1, sdk.MsgSubmit, submit(x, 2, 1))
	w.take()
	worker := w.starts[0].ID
	w.startAll()
	w.take()
	w.c.Starved(worker)
	w.c.Gone(w.now, worker, "there are 2 GiB")
	w.frame(1, sdk.MsgGet, get(sdk.GetValue, x.With(1)))
	w.take()
	if got := w.objects(1)[x.With(1)]; !strings.Contains(got, "memory") || !strings.Contains(got, "there are 2 GiB") || strings.Contains(got, "worker_crashed") {
		t.Errorf("got %q", got)
	}
	if o := w.restored().objects[x.With(1)]; o == nil || !strings.Contains(string(o.data), "memory") {
		t.Errorf("after a restart %+v", o)
	}
}

// TestUnbornWorkers: workers that die before they said anything have an environment in
// which none can be started, unless they died with the agent that was starting them.
func TestUnbornWorkers(t *testing.T) {
	w := newDesk(t, maxFailures)
	w.driver(1)
	for k := range uint64(maxFailures) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, k+1), 1, 1))
	}
	w.take()
	if len(w.starts) != maxFailures {
		t.Fatalf("%d workers are started for %d tasks", len(w.starts), maxFailures)
	}
	next := newDesk(t, maxFailures)
	if err := next.c.Restore(w.log); err != nil {
		t.Fatal(err)
	}
	next.c.Resume(next.now)
	for _, d := range []*desk{w, next} {
		for _, s := range w.starts[:maxFailures] {
			d.c.Gone(d.now, s.ID, "it is gone")
		}
		d.take()
	}
	failed := func(d *desk) (n int) {
		for _, o := range d.c.objects {
			if o.kind == sdk.Failure {
				n++
			}
		}
		return n
	}
	if failed(w) == 0 {
		t.Error("no task failed where no worker can be started")
	}
	if n := failed(next); n != 0 || len(next.starts) != maxFailures {
		t.Errorf("%d tasks failed that an agent's death left without workers, %d workers were started", n, len(next.starts))
	}
}
