package tasks

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"

	"launcher/wire"
	"launcher/wire/sdk"
)

var errLost = errors.New("it is not there")

// message is a frame on its way. sync is a Call that asks only to be answered.
type message struct {
	typ  uint16
	body []byte
	sync bool

	// Of agents:
	after uint64 // it waits until the owner of references knows of so many
	ack   uint64 // and with this it does
}

// attempt is one run of a task.
type attempt struct {
	task id
	n    uint32
}

// proc is a driver or a worker.
type proc struct {
	s      *sim
	id     uint32
	worker bool
	here   bool      // its connection stands
	out    []message // written since the last proof, and to be written from next on
	next   int
	in     []message // from the agent
	n      uint64
	told   bool
	stack  []*run
	queue  []*run
	begun  uint32 // sequence of the newest frame that was looked at
	ran    uint32 // and of the newest that was run
	drop   int    // answers that are due before Execs count
	from   uint32 // withdrawn
	to     uint32
	seen   map[attempt]bool
	exit   bool
	wary   bool // it came back: what is given may be what it would have handed back

	shapes   map[string]uint32 // options that the agent was told, of acts
	refs     map[id]int        // references, of acts
	life     *simLife          // it is an actor's
	creation *run              // which was made by this
}

type value struct {
	n      uint64
	bad    bool
	code   string // of an error of an agent
	end    bool   // of a stream
	judged bool
}

// run is a program in work.
type run struct {
	attempt
	seq   uint32
	p     program
	deps  []id
	kids  []id
	open  []id // awaited
	at    int
	gone  bool // cancelled
	has   map[id]value
	more  map[id]id   // of values: the rest of it is in another object
	given map[id][]id // what arguments refer to
	act   *act        // it is none of the programs below
}

// program is what a task does.
type program struct {
	seed  uint64
	depth uint8
}

func (p program) bytes() []byte {
	return append(binary.LittleEndian.AppendUint64(nil, p.seed), p.depth)
}

// chain is from which depth on a program has one child.
const chain = 8

// plan is what follows from a program: its children, each with which of the earlier ones
// are its arguments, and how it ends.
type plan struct {
	kids  []program
	deps  [][]int
	fails bool
	big   bool
	rest  uint64 // part of the result is in an object of its own, which it refers to; 0 = none is
	add   uint64
}

func (p program) plan() plan {
	r := rand.New(rand.NewPCG(p.seed, uint64(p.depth)))
	x := plan{add: r.Uint64N(1000), fails: r.IntN(12) == 0, big: r.IntN(3) == 0}
	if !x.big && r.IntN(3) == 0 {
		x.rest = 1 + r.Uint64N(1000)
	}
	if p.depth == 0 {
		return x
	}
	if p.depth > chain {
		return plan{kids: []program{{r.Uint64(), p.depth - 1}}, deps: [][]int{nil}, add: x.add}
	}
	for i := range 1 + r.IntN(3) {
		x.kids = append(x.kids, program{r.Uint64(), min(p.depth, 5) - 1})
		var d []int
		for k := range i {
			if r.IntN(2) == 0 {
				d = append(d, k)
			}
		}
		x.deps = append(x.deps, d)
	}
	return x
}

// combine is a program's result from those of its arguments and children.
func (x plan) combine(p program, in, kids []value) value {
	if x.fails {
		return value{n: p.seed, bad: true}
	}
	out := value{n: x.add}
	for _, v := range in {
		out.n += 3 * v.n
	}
	for i, v := range kids {
		if v.bad {
			out.n++
		} else {
			out.n += uint64(7+i) * v.n
		}
	}
	out.n %= 1 << 40
	return out
}

// result is what a program gives when nothing goes wrong.
func (p program) result(in []value) value {
	for _, v := range in {
		if v.bad {
			return v
		}
	}
	x := p.plan()
	var kids []value
	for i, k := range x.kids {
		var d []value
		for _, j := range x.deps[i] {
			d = append(d, kids[j])
		}
		kids = append(kids, k.result(d))
	}
	return x.combine(p, in, kids)
}

func (v value) encode(big bool, refs ...id) []byte {
	data := binary.LittleEndian.AppendUint64(nil, v.n)
	switch {
	case v.bad:
		return sdk.AppendValue(nil, sdk.Failure, 1, nil, 8, data)
	case big:
		b := sdk.AppendValue(nil, sdk.Shared, 2, nil, 1<<20, nil)
		b = binary.LittleEndian.AppendUint64(b, 1)
		return binary.LittleEndian.AppendUint64(b, v.n*64)
	}
	return sdk.AppendValue(nil, sdk.Inline, 2, refs, 8, data)
}

func (p *proc) send(typ uint16, pieces ...[]byte) {
	p.out = append(p.out, message{typ: typ, body: slices.Concat(pieces...)})
}

func flat(ids []id) []byte {
	var b []byte
	for _, x := range ids {
		b = append(b, x[:]...)
	}
	return b
}

var simFunc = funcID{1, 2, 3}

// submit sends a task and gives its result.
func (p *proc) submit(pr program, deps ...id) id {
	if !p.told {
		p.told = true
		p.send(sdk.MsgFunc, simFunc[:], le32(3), []byte("simcode"))
		p.send(sdk.MsgShape, le32(1), wire.Marshal(map[string]any{"name": "sim", "max_retries": -1}))
	}
	p.n++
	t := wire.NewObjectID(p.s.cfg.Number, p.id, p.n, 0)
	p.send(sdk.MsgSubmit, t[:], simFunc[:], le32(1), le32(1), le32(0), le32(uint32(len(deps))), le32(0), flat(deps), pr.bytes())
	return t.With(1)
}

// put makes an object.
func (p *proc) put(v value, big bool) id {
	p.n++
	x := wire.NewObjectID(p.s.cfg.Number, p.id, p.n, wire.PutIndex)
	p.send(sdk.MsgPut, x[:], v.encode(big))
	return x
}

// refers: a value that a run has been given refers to the rest of it.
func (p *proc) refers(r *run, x id, refs []id) {
	if len(refs) == 0 || r.act != nil || r.more[x] != (id{}) {
		return
	}
	if r.more == nil {
		r.more = map[id]id{}
	}
	r.more[x] = refs[0]
	p.keep(refs[0], false)
	p.wait(r, refs[0])
}

// val is a value that a run has been given, all of it.
func (r *run) val(x id) value {
	v := r.has[x]
	if y, ok := r.more[x]; ok {
		v.n += r.has[y].n
	}
	return v
}

// forgets what a run's values refer to.
func (p *proc) forgets(r *run) {
	var ys []id
	for _, y := range r.more {
		ys = append(ys, y)
	}
	sortIDs(ys)
	p.lose(ys...)
}

// wait lets a run wait for objects.
func (p *proc) wait(r *run, ids ...id) {
	others := p.waits()
	for _, x := range ids {
		if _, ok := r.has[x]; !ok && !slices.Contains(r.open, x) {
			r.open = append(r.open, x)
		}
	}
	if len(r.open) == 0 {
		return
	}
	if p.worker && !others && p.life == nil {
		p.handBack(p.begun + 1)
	}
	p.send(sdk.MsgGet, le32(sdk.GetValue|sdk.GetBlocks), le32(0), flat(r.open))
}

func (p *proc) waits() bool {
	return slices.ContainsFunc(p.stack, func(r *run) bool { return len(r.open) > 0 })
}

func (p *proc) handBack(from uint32) {
	p.queue, p.wary = nil, false
	p.send(sdk.MsgHandBack, le32(from))
	p.out = append(p.out, message{sync: true})
	p.drop++
}

func (p *proc) release(ids ...id) {
	p.send(sdk.MsgRelease, flat(ids))
}

// deliver lets n frames arrive at the agent.
func (p *proc) deliver(n int) {
	for _, m := range p.out[p.next : p.next+n] {
		p.next++
		if m.sync {
			p.s.c.Synced(p.id, 1)
			continue
		}
		if err := p.s.c.Frame(p.s.now, p.id, m.typ, m.body); err != nil {
			p.s.t.Fatalf("client %d, frame %#x: %v", p.id, m.typ, err)
		}
	}
}

// comeBack connects again after the connection broke or the agent was killed.
func (p *proc) comeBack() {
	if p.s.c.clients[p.id] == nil {
		p.s.died(p)
		return
	}
	p.s.c.Back(p.s.now, p.id)
	p.here, p.next, p.drop, p.queue, p.in, p.wary = true, 0, 0, nil, nil, true
	p.out = slices.DeleteFunc(p.out, func(m message) bool {
		return m.sync || m.typ == sdk.MsgHandBack || m.typ == sdk.MsgGet || m.typ == sdk.MsgAwake
	})
	for _, r := range p.stack {
		if len(r.open) > 0 {
			p.send(sdk.MsgGet, le32(sdk.GetValue|sdk.GetBlocks), le32(0), flat(r.open))
		}
	}
}

// read takes a frame of the agent.
func (p *proc) read() {
	m := p.in[0]
	p.in = p.in[1:]
	switch {
	case m.typ == sdk.MsgAnswer:
		// All up to the first Call that is not answered has been handled.
		i := slices.IndexFunc(p.out, func(m message) bool { return m.sync })
		p.out, p.next = p.out[i+1:], p.next-i-1
		p.drop--
	case m.typ == sdk.MsgObject:
		p.object(id(m.body[:16]), m.body[16:])
	case m.typ == sdk.MsgExec:
		p.exec(m.body)
	case m.typ == sdk.MsgCancelTask:
		x := attempt{id(m.body[:16]), u32(m.body[16:])}
		for _, r := range slices.Concat(p.stack, p.queue) {
			r.gone = r.gone || r.attempt == x
		}
	case m.typ == sdk.MsgExit:
		p.exit = true
	}
}

func (p *proc) object(x id, b []byte) {
	if !slices.ContainsFunc(p.stack, func(r *run) bool { return slices.Contains(r.open, x) }) {
		return // it was asked for twice
	}
	kind, refs := b[0], int(u32(b[4:]))
	v := value{bad: kind == sdk.Failure}
	switch {
	case kind == sdk.End:
		v.end = true
	case kind == sdk.Shared:
		n, ok := p.s.sealed[x]
		if !ok || p.s.disk[x] { // gone before it was read
			p.send(sdk.MsgGet, le32(sdk.GetValue|sdk.GetBlocks), le32(0), x[:])
			return
		}
		v.n = n
	case len(b) < 16+16*refs+8:
		p.s.t.Fatalf("client %d got %s: %q", p.id, x, b)
	case v.bad && len(b) > 16+8 && p.s.ledger != nil:
		var e sdk.Error
		if err := wire.Unmarshal(b[16:], &e); err != nil {
			p.s.t.Fatal(err)
		}
		v.code = e.Code
	case v.bad && len(b) > 16+8 && (p.s.over || slices.ContainsFunc(p.stack, func(r *run) bool { return r.gone && slices.Contains(r.open, x) })):
		v.n = 0 // cancelled
	case v.bad && len(b) > 16+8:
		p.s.t.Fatalf("client %d got an error of the agent for %s: %q", p.id, x, b[16:])
	default:
		v.n = binary.LittleEndian.Uint64(b[16+16*refs:])
	}
	for _, r := range p.stack {
		if i := slices.Index(r.open, x); i >= 0 {
			r.open = slices.Delete(r.open, i, i+1)
			r.has[x] = v
			found := slices.Collect(ids(b[16:][:16*refs]).all())
			if r.act != nil {
				for _, h := range found {
					p.keep(h, false)
					r.act.handles = append(r.act.handles, h)
				}
			}
			p.refers(r, x, found)
		}
	}
}

func (p *proc) exec(b []byte) {
	if p.drop > 0 {
		return
	}
	if x := (attempt{id(b[:16]), u32(b[32:])}); p.wary && p.life == nil && !p.seen[x] && p.waits() {
		p.handBack(u32(b[36:])) // what was behind the task that waits
		return
	}
	r := &run{attempt: attempt{id(b[:16]), u32(b[32:])}, seq: u32(b[36:]), has: map[id]value{}}
	deps, about := int(u32(b[48:])), u32(b[52:])
	b = b[56+about:]
	var found []id
	given := map[id][]id{} // to be asked for, too, when it begins
	for range deps {
		x := id(b[:16])
		r.deps = append(r.deps, x)
		if b[16] == sdk.Apart { // to be asked for
			b = b[32:]
			continue
		}
		v, b2, err := sdk.CutValue(append(slices.Clone(b[16:]), make([]byte, 16)...))
		if err != nil {
			p.s.t.Fatal(err)
		}
		if v.Kind == sdk.Shared {
			b = b[16+16+len(v.Refs):]
		} else {
			refs := idsOf(v.Refs)
			found = append(found, refs...)
			if len(refs) > 0 {
				given[x] = refs
			}
			r.has[x] = value{n: binary.LittleEndian.Uint64(v.Bytes), bad: v.Kind == sdk.Failure}
			b = b2[:len(b2)-16]
		}
	}
	if r.p = (program{binary.LittleEndian.Uint64(b), b[8]}); r.p.depth&0x80 != 0 {
		r.act = actOf(b, r.n)
		r.act.handles = append(r.act.handles, found...)
	}
	r.given = given
	if !p.seen[r.attempt] {
		p.queue = append(p.queue, r)
	}
}

// canRun reports whether a worker has something to do.
func (p *proc) canRun() bool {
	switch {
	case !p.worker:
		r := p.stack[0]
		return r.act != nil && !r.gone && len(r.open) == 0
	case p.life != nil && p.life.up:
		return p.life.ends || p.exit && len(p.stack)+len(p.queue) == 0 || len(p.moves()) > 0
	}
	return len(p.queue) > 0 && (len(p.stack) == 0 || len(p.stack[len(p.stack)-1].open) > 0) ||
		len(p.stack) > 0 && len(p.stack[len(p.stack)-1].open) == 0 || p.exit && len(p.stack) == 0
}

// start begins a task, unless that attempt of it has been begun.
func (p *proc) start(r *run) {
	if p.seen[r.attempt] {
		return
	}
	p.seen[r.attempt] = true
	p.stack = append(p.stack, r)
	if p.life == nil || !p.life.up {
		p.s.deepest = max(p.s.deepest, len(p.stack))
	}
	p.s.runs++
	if r.act != nil {
		p.takes(r)
	}
	var need []id
	for _, d := range r.deps {
		if _, ok := r.has[d]; !ok {
			if n, ok := p.s.sealed[d]; ok && !p.s.disk[d] {
				r.has[d] = value{n: n}
			} else {
				need = append(need, d)
			}
		}
	}
	p.wait(r, need...)
	for _, d := range r.deps {
		p.refers(r, d, r.given[d])
	}
}

// run does one step of the task on top, or begins the next.
func (p *proc) run() {
	actor := p.life != nil && p.life.up
	if len(p.stack) == 0 && p.exit && (!actor || len(p.queue) == 0) || actor && p.life.ends {
		p.deliver(len(p.out) - p.next)
		p.s.died(p)
		p.s.c.Gone(p.s.now, p.id, "exited")
		return
	}
	if actor {
		can := p.moves()
		can[p.s.rng.IntN(len(can))]()
		return
	}
	if len(p.stack) == 0 || len(p.stack[len(p.stack)-1].open) > 0 {
		r := p.queue[0]
		p.queue = p.queue[1:]
		p.begun = r.seq
		if p.from != 0 && p.from <= r.seq && r.seq < p.to {
			return
		}
		p.ran = r.seq
		p.start(r)
		return
	}
	r := p.stack[len(p.stack)-1]
	if r.act != nil {
		p.does(r)
		return
	}
	x := r.p.plan()
	if r.at == 0 && len(x.kids) > 0 && !r.gone {
		r.at = 1
		for i, k := range x.kids {
			var d []id
			for _, j := range x.deps[i] {
				d = append(d, r.kids[j])
			}
			r.kids = append(r.kids, p.submit(k, d...))
		}
		p.wait(r, r.kids...)
		return
	}
	var in, kids []value
	bad := value{}
	for _, d := range r.deps {
		if in = append(in, r.val(d)); r.has[d].bad {
			bad = r.has[d]
		}
	}
	for _, k := range r.kids {
		kids = append(kids, r.val(k))
	}
	v := x.combine(r.p, in, kids)
	if bad.bad {
		v = bad
	}
	if len(r.kids) > 0 {
		p.release(r.kids...)
	}
	p.stack = p.stack[:len(p.stack)-1]
	status := sdk.ResultOK
	switch {
	case r.gone:
		status, v = sdk.ResultCancelled, value{bad: true}
	case v.bad:
		status = sdk.ResultFailed
	}
	p.forgets(r)
	var rest []id
	if x.rest > 0 && !v.bad {
		v.n -= x.rest
		rest = append(rest, p.put(value{n: x.rest}, x.rest%2 == 0))
	}
	end := binary.LittleEndian.AppendUint64(nil, uint64(p.s.now+int64(p.s.rng.IntN(1_000_000))))
	p.send(sdk.MsgResult, r.task[:], le32(r.n), le32(status), binary.LittleEndian.AppendUint64(nil, uint64(p.s.now)), end, le32(1), v.encode(x.big, rest...))
	if len(rest) > 0 {
		p.release(rest...)
	}
}
