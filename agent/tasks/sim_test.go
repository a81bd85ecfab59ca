package tasks

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// world is a node in memory: a reactor, and drivers and workers that speak the frames of
// docs/tasks.md to it. What happens next is drawn from a seed.
type world struct {
	t     testing.TB
	rng   *rand.Rand
	cfg   Config
	c     *Core
	now   int64
	room  *fakeRoom
	store *fakeStore
	procs map[uint32]*proc
	log   []byte // records that are safe
	funcs []byte // code of the only function
	trace []string

	shared   bool // large results
	restarts int
	crashes  int
	maxDepth int // of a worker's stack
	maxProcs int
	started  int
}

const simNode = 7

func newWorld(t testing.TB, seed uint64, cpus int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: 1_700_000_000 * second, procs: map[uint32]*proc{},
		cfg: Config{Number: simNode, Node: "n1", Cores: cpus},
	}
	w.room = &fakeRoom{total: wire.Resources{CPU: int64(cpus) * wire.Unit, Memory: 1 << 30}}
	w.store = &fakeStore{w: w, sealed: map[id]bool{}, disk: map[id]bool{}}
	w.c = New(w.cfg, w.room, w.store)
	return w
}

// fakeRoom counts.
type fakeRoom struct {
	total, used wire.Resources
	lent        int
}

func (r *fakeRoom) Take(_ int64, need wire.Resources, _ int64) (core.Slot, bool) {
	if !r.total.Add(r.used, -1).Fits(need) {
		return core.Slot{}, false
	}
	r.used = r.used.Add(need, 1)
	return core.Slot{}, true
}
func (r *fakeRoom) Keep(need wire.Resources, _ core.Slot) { r.used = r.used.Add(need, 1) }
func (r *fakeRoom) Give(need wire.Resources, _ core.Slot) { r.used = r.used.Add(need, -1) }
func (r *fakeRoom) Lend(_ string, lend bool) {
	if lend {
		r.lent++
	} else {
		r.lent--
	}
}
func (r *fakeRoom) Could(need wire.Resources) bool { return r.total.Fits(need) }
func (r *fakeRoom) Total() wire.Resources          { return r.total }

// fakeStore knows what is sealed, and what of it is on disk.
type fakeStore struct {
	w      *world
	sealed map[id]bool
	disk   map[id]bool
}

func (s *fakeStore) Seal(_ uint32, x id, _ byte, _ uint32, _, _ int64) error {
	s.sealed[x] = true
	return nil
}
func (s *fakeStore) Resident(x id) bool { return s.sealed[x] && !s.disk[x] }

// message is a frame on its way.
type message struct {
	typ  uint16
	body []byte
	sync bool // a Call, answered in its place
}

// proc is a driver or a worker.
type proc struct {
	w      *world
	id     uint32
	worker bool
	out    []message // to the agent
	proof  []message // written, and not known to have been handled
	in     []message // from the agent
	n      uint64
	told   map[string]bool
	values map[id]value
	asked  map[id]bool
	open   []id // that it waits for

	queue []*run
	stack []*run
	begun uint32
	drop  int // answers that are awaited before Execs count again
	from  uint32
	to    uint32 // withdrawn
	seen  map[string]bool
	exit  bool
}

type value struct {
	n   uint64
	bad bool
}

// run is a program in work: see program.
type run struct {
	task    id
	attempt uint32
	seq     uint32
	returns uint32
	p       program
	in      []value
	kids    []id
	step    int
	gone    bool
}

// program is what a task does, told by its payload.
type program struct {
	seed  uint64
	depth uint8
}

func (p program) bytes() []byte {
	return append(binary.LittleEndian.AppendUint64(nil, p.seed), p.depth)
}

func (p program) rng() *rand.Rand { return rand.New(rand.NewPCG(p.seed, uint64(p.depth))) }

// plan is what follows from a program: its children, each with which of the earlier ones
// it has for arguments, and whether it fails.
type plan struct {
	kids  []program
	deps  [][]int
	fails bool
	big   bool
	add   uint64
}

func (p program) plan() plan {
	r := p.rng()
	x := plan{add: r.Uint64N(1000), fails: r.IntN(12) == 0, big: r.IntN(3) == 0}
	if p.depth == 0 {
		return x
	}
	for i := range 1 + r.IntN(3) {
		x.kids = append(x.kids, program{r.Uint64(), p.depth - 1})
		var d []int
		for k := range i {
			if r.IntN(3) == 0 {
				d = append(d, k)
			}
		}
		x.deps = append(x.deps, d)
	}
	return x
}

// result is what a program gives.
func (p program) result(in []value) value {
	for _, v := range in {
		if v.bad {
			return v
		}
	}
	x := p.plan()
	if x.fails {
		return value{p.seed, true}
	}
	out := value{n: x.add}
	for _, v := range in {
		out.n += 3 * v.n
	}
	var kids []value
	for i, k := range x.kids {
		var d []value
		for _, j := range x.deps[i] {
			d = append(d, kids[j])
		}
		v := k.result(d)
		kids = append(kids, v)
		if v.bad {
			out.n++
		} else {
			out.n += 7 * v.n
		}
	}
	return out
}

func (v value) encode(x id, big bool) []byte {
	data := binary.LittleEndian.AppendUint64(nil, v.n)
	switch {
	case v.bad:
		return sdk.AppendValue(nil, sdk.Failure, 1, nil, 8, data)
	case big:
		b := sdk.AppendValue(nil, sdk.Shared, 2, nil, 1<<20, nil)
		b = binary.LittleEndian.AppendUint64(b, 1)
		return binary.LittleEndian.AppendUint64(b, v.n*64)
	}
	return sdk.AppendValue(nil, sdk.Inline, 2, nil, 8, data)
}

func (p *proc) send(typ uint16, pieces ...[]byte) {
	p.out = append(p.out, message{typ: typ, body: slices.Concat(pieces...)})
}

// hello connects a driver.
func (w *world) driver(job string) *proc {
	p := w.newProc(w.c.NextClient(), false)
	if err := w.c.Connect(w.now, Client{ID: p.id, Kind: sdk.KindDriver, Language: "go", Job: job, PID: int(p.id), Program: "/bin/prog"}); err != nil {
		w.t.Fatal(err)
	}
	w.take(false)
	return p
}

func (w *world) newProc(id_ uint32, worker bool) *proc {
	p := &proc{w: w, id: id_, worker: worker, told: map[string]bool{}, values: map[id]value{}, asked: map[id]bool{}, seen: map[string]bool{}}
	w.procs[id_] = p
	return p
}

var simFunc = funcID{1, 2, 3}

// submit sends a task and gives its result's id.
func (p *proc) submit(pr program, deps ...id) id {
	return p.submitWith(wire.Marshal(map[string]any{"name": "sim"}), pr, deps...)
}

func (p *proc) submitWith(options []byte, pr program, deps ...id) id {
	if !p.told["func"] {
		p.told["func"] = true
		p.send(sdk.MsgFunc, simFunc[:], le32(3), []byte("simcode"))
	}
	if !p.told[string(options)] {
		p.told[string(options)] = true
		p.send(sdk.MsgShape, le32(uint32(len(p.told))), options)
		p.told[string(options)+fmt.Sprint(len(p.told))] = false
	}
	shape := uint32(0)
	for i := range uint32(64) {
		if _, ok := p.told[string(options)+fmt.Sprint(i)]; ok {
			shape = i
		}
	}
	p.n++
	t := wire.NewObjectID(simNode, p.id, p.n, 0)
	body := slices.Concat(t[:], simFunc[:], le32(shape), le32(1), le32(0), le32(uint32(len(deps))), le32(0))
	for _, d := range deps {
		body = append(body, d[:]...)
	}
	p.send(sdk.MsgSubmit, body, pr.bytes())
	return t.With(1)
}

// get asks for values, and waits for them if it is a worker or blocks.
func (p *proc) get(ids ...id) {
	if p.worker && len(p.open) == 0 {
		p.queue = nil
		p.send(sdk.MsgHandBack, le32(p.begun+1))
		p.out = append(p.out, message{sync: true})
		p.drop++
	}
	var b []byte
	for _, x := range ids {
		if _, ok := p.values[x]; !ok {
			p.open = append(p.open, x)
			b = append(b, x[:]...)
		}
	}
	if len(b) > 0 {
		p.send(sdk.MsgGet, le32(sdk.GetValue|sdk.GetBlocks), le32(0), b)
	}
}

func (p *proc) release(ids ...id) {
	var b []byte
	for _, x := range ids {
		b = append(b, x[:]...)
		delete(p.values, x)
	}
	p.send(sdk.MsgRelease, b)
}
