package sim

import (
	"fmt"

	"launcher/head/core"
	"launcher/jobs/run"
	"launcher/jobs/sweep"
	"launcher/jobs/train"
	"launcher/wire"
)

const poolSize = 3

func nodeName(i int) wire.NodeID { return wire.NodeID(fmt.Sprintf("local-%d", i)) }

var machines = map[wire.Kind]core.Maker{wire.KindRun: run.New, wire.KindArray: run.New, wire.KindTrain: train.New, wire.KindSweep: sweep.New}

// head is the head's shell and its disk: it journals in groups, performs effects when
// the records before them are safe, and comes back after a crash.
type head struct {
	w     *world
	life  int // things of an earlier life do not happen
	alive bool
	core  *core.Core
	disk  [][]byte      // records that are safe
	queue []core.Output // not yet safe
	busy  bool          // a sync is under way
	conns map[wire.NodeID]*conn
	wake  int64
	reqs  map[uint64]func(any, error)
	next  uint64
}

func newHead(w *world) *head { return &head{w: w} }

// start replays the journal, like every life of a head.
func (h *head) start() {
	h.life++
	h.alive, h.busy, h.queue, h.wake = true, false, nil, 0
	h.conns, h.reqs = map[wire.NodeID]*conn{}, map[uint64]func(any, error){}
	d := core.NewDurable(machines)
	// Sometimes from a snapshot of a part of it.
	cut := -1
	if h.w.rng.IntN(2) == 0 && len(h.disk) > 0 {
		cut = h.w.rng.IntN(len(h.disk))
	}
	for i, b := range h.disk {
		r, err := core.DecodeRecord(b)
		if err == nil {
			err = d.Apply(r)
		}
		if err == nil && i == cut {
			d, err = core.DecodeDurable(d.Encode(), machines)
		}
		if err != nil {
			h.w.fail("record %d cannot be replayed: %v", i, err)
			return
		}
	}
	h.w.laws.replayed(h.disk)
	h.core = core.New(core.Config{Cluster: "sim", Nonce: "s", RecordDir: "/record", Machines: machines,
		Pools: []wire.Pool{{Name: "local", Backend: "sim", Min: poolSize, Max: poolSize}}}, d)
	h.w.trace("head starts, %d records", len(h.disk))
	h.step(core.Start{})
}

// crash ends this life: what was not safe is lost from some point on.
func (h *head) crash() {
	if !h.alive {
		return
	}
	h.w.fault("head", "crash with %d outputs not safe", len(h.queue))
	var loose [][]byte
	for _, o := range h.queue {
		for _, r := range o.Records {
			loose = append(loose, core.EncodeRecord(r))
		}
	}
	h.disk = append(h.disk, loose[:h.w.rng.IntN(len(loose)+1)]...)
	h.alive = false
	h.life++
	for _, i := range sortedNodes(h.conns) {
		h.conns[i].cut(0)
	}
	life := h.life
	h.w.after(h.w.between(50*millisecond, 4*second), func() {
		if h.life == life {
			h.start()
		}
	})
}

// step gives the core an event and queues what it gives.
func (h *head) step(ev core.Event) {
	if !h.alive || h.w.err != nil {
		return
	}
	out := h.core.Step(h.w.now, ev)
	if err := h.core.Check(); err != nil {
		h.w.fail("after %T: %v", ev, err)
		return
	}
	for _, r := range out.Records {
		h.w.trace("head record %s", brief{r})
		h.w.laws.recorded(r)
	}
	if len(out.Records)+len(out.Effects) > 0 {
		h.queue = append(h.queue, out)
		h.sync()
	}
	h.tick()
}

// sync makes what is queued safe, in groups, and performs its effects.
func (h *head) sync() {
	if h.busy {
		return
	}
	h.busy = true
	life, d := h.life, int64(0)
	for _, o := range h.queue {
		if len(o.Records) > 0 {
			d = h.w.between(millisecond, 30*millisecond)
		}
	}
	n := len(h.queue)
	h.w.after(d, func() {
		if h.life != life {
			return
		}
		group := h.queue[:n]
		h.queue = h.queue[n:]
		h.busy = false
		for _, o := range group {
			for _, r := range o.Records {
				h.disk = append(h.disk, core.EncodeRecord(r))
			}
		}
		for _, o := range group {
			for _, e := range o.Effects {
				h.perform(e)
			}
		}
		if len(h.queue) > 0 {
			h.sync()
		}
	})
}

// tick arranges for the next Tick.
func (h *head) tick() {
	at := h.core.Wake()
	if at == 0 || h.wake > h.w.now && h.wake <= at {
		return
	}
	at = max(at, h.w.now+millisecond)
	h.wake = at
	life := h.life
	h.w.after(at-h.w.now, func() {
		if h.life == life && h.wake == at {
			h.wake = 0
			h.step(core.Tick{})
		}
	})
}

func (h *head) perform(e core.Effect) {
	w := h.w
	switch e := e.(type) {
	case core.SendAgent:
		if c := h.conns[e.Node]; c != nil && c.m.epoch == e.Epoch {
			w.trace("head -> %s %s", e.Node, brief{e.Msg})
			w.laws.told(c.m, e.Msg)
			c.toAgent(e.Msg)
		}
	case core.DropAgent:
		w.trace("head drops %s: %v", e.Node, e.Err)
		if c := h.conns[e.Node]; c != nil && c.m.epoch == e.Epoch {
			c.cut(0)
		}
	case core.Reply:
		if f := h.reqs[e.ID]; f != nil {
			if !e.More {
				delete(h.reqs, e.ID)
			}
			f(e.Resp, e.Err)
		}
	case core.JobLogsWanted:
		life := h.life
		w.after(w.between(millisecond, second), func() {
			if h.life == life {
				h.step(core.LogsDone{Job: e.Job})
			}
		})
	case core.SubmitNodes, core.FindAllocs, core.QueryAllocs, core.CancelAllocs:
		w.backend.ask(h, h.life, e)
	case core.JobChanged, core.DeleteCheckpoints, core.TaskOver, core.ConfigChanged, core.CloseDown:
	default:
		w.fail("the head gave an effect %T", e)
	}
}

// ask is a client's request; it is asked again when the head dies over it.
func (h *head) ask(req any, answer func(any, error)) {
	w := h.w
	done := false
	var send func()
	send = func() {
		if done {
			return
		}
		if h.alive {
			h.next++
			h.reqs[h.next] = func(v any, err error) {
				if !done {
					done = true
					answer(v, err)
				}
			}
			h.step(core.ClientReq{ID: h.next, Req: req})
		}
		w.after(2*second, send)
	}
	send()
}

// backend starts and ends nodes; it outlives every head.
type backend struct {
	w    *world
	subs map[string][]*machine
}

func (b *backend) ask(h *head, life int, e core.Effect) {
	w := b.w
	reply := func(ev core.Event) {
		w.after(w.between(millisecond, 50*millisecond), func() {
			if h.life == life {
				h.step(ev)
			}
		})
	}
	allocs := func(token string) (out []core.Alloc) {
		for _, m := range b.subs[token] {
			out = append(out, core.Alloc{Handle: []byte(m.name()), Nodes: []wire.NodeID{m.id}})
		}
		return out
	}
	switch e := e.(type) {
	case core.SubmitNodes:
		// The call happens even when the head dies over it, sooner or later, or never.
		if w.rng.IntN(20) == 0 && w.now < w.calmAt {
			w.fault("submit", "%s fails", e.Token)
			reply(core.Submitted{Token: e.Token, Err: fmt.Errorf("no luck today")})
			return
		}
		if b.subs[e.Token] == nil {
			for i, id := range e.Nodes {
				m := newMachine(w, id, e.Epochs[i], e.Token)
				b.subs[e.Token] = append(b.subs[e.Token], m)
				w.nodes[id] = m
			}
		}
		reply(core.Submitted{Token: e.Token, Allocs: allocs(e.Token)})
	case core.FindAllocs:
		f := core.Found{Pool: e.Pool, Tokens: e.Tokens, Allocs: map[string][]core.Alloc{}}
		for _, t := range e.Tokens {
			if a := allocs(t); len(a) > 0 {
				f.Allocs[t] = a
			}
		}
		reply(f)
	case core.QueryAllocs:
		s := core.AllocStatus{Pool: e.Pool}
		for _, hd := range e.Handles {
			it := core.AllocItem{Handle: hd, State: core.AllocLost, Why: "unknown"}
			if m := b.find(string(hd)); m != nil {
				it.State, it.Why = core.AllocRunning, ""
				if !m.alive && w.now >= m.knownDead {
					it.State, it.Why = core.AllocFailed, "the node died"
				}
			}
			s.Items = append(s.Items, it)
		}
		reply(s)
	case core.CancelAllocs:
		for _, hd := range e.Handles {
			if m := b.find(string(hd)); m != nil && m.alive {
				w.trace("backend ends %s", m.name())
				m.end()
			}
		}
	}
}

func (b *backend) find(handle string) *machine {
	for _, ms := range b.subs {
		for _, m := range ms {
			if m.name() == handle {
				return m
			}
		}
	}
	return nil
}
