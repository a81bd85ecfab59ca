package sim

import (
	"slices"

	agent "launcher/agent/core"
	"launcher/wire"
)

// tasks is a model of the SDK tasks of one node: a number of them per shape waits, runs
// here in room of the agent's core or, under leases, on other nodes. It stands for
// agent/tasks, keeps the rules of leases as that must, and outlives agents.
type tasks struct {
	m       *machine
	kinds   []*kind
	running int // here, own and foreign
	used    wire.Resources
	room    []*stay // what runs here, so that the next agent can be told
	leases  map[wire.LeaseID]*taken
	seen    uint64
}

// kind is tasks of one shape.
type kind struct {
	id      uint32
	shape   wire.Shape
	mean    int64
	waiting int
	out     int // running somewhere
	done    int
	endless bool
	since   int64
}

// taken is a lease that this node may use.
type taken struct {
	wire.Leased
	slots, used int
	idle        int64 // since when it has a slot that is not used
}

// stay is a task that runs on a node.
type stay struct {
	owner string
	need  wire.Resources
	slot  agent.Slot
	lease wire.LeaseID
}

func newTasks(m *machine) *tasks {
	return &tasks{m: m, leases: map[wire.LeaseID]*taken{}}
}

// flood gives the node tasks of a shape to run.
func (t *tasks) flood(shape wire.Shape, n int, mean int64, endless bool) {
	t.kinds = append(t.kinds, &kind{id: uint32(len(t.kinds) + 1), shape: shape, mean: mean, waiting: n, endless: endless, since: t.m.w.now})
	t.m.w.load.tasks += n
	t.kick()
}

// kick starts what can be started, and tells what waits.
func (t *tasks) kick() {
	m := t.m
	if !m.alive || !m.up || m.w.err != nil {
		return
	}
	t.claim()
	for _, k := range t.kinds {
		for k.waiting > 0 && k.shape.Strategy.Kind == wire.StrategyDefault {
			s, ok := m.core.TakeRoomFor(m.clock(), agent.Who{Job: k.shape.Owner, Priority: k.shape.Priority}, k.shape.Resources, k.shape.Time)
			if !ok {
				break
			}
			k.waiting--
			k.out++
			t.stay(&stay{owner: k.shape.Owner, need: k.shape.Resources, slot: s}, k.mean, func() { t.ended(k) }, func() { t.again(k) })
		}
	}
	for _, id := range sortedLeases(t.leases) {
		l := t.leases[id]
		k := t.kinds[l.Shape-1]
		for k.waiting > 0 && l.used < l.slots {
			k.waiting--
			k.out++
			l.used++
			t.send(k, l)
		}
		if l.used >= l.slots {
			l.idle = 0
		} else if l.idle == 0 {
			l.idle = m.w.now
			m.w.after(wire.LeaseIdle, func() { t.giveBack(l) })
		}
	}
	m.step(agent.DemandChanged{Seen: t.seen, Shapes: t.demand()})
}

// claim says what each job uses here and wants.
func (t *tasks) claim() {
	all := map[string]agent.Claim{}
	for _, s := range t.room {
		x := all[s.owner]
		x.Job, x.Use = s.owner, x.Use.Add(s.need, 1)
		all[s.owner] = x
	}
	for _, k := range t.kinds {
		if k.waiting == 0 || k.shape.Strategy.Kind != wire.StrategyDefault {
			continue
		}
		x := all[k.shape.Owner]
		if x.Job = k.shape.Owner; !x.Waits || k.shape.Priority > x.Want.Priority {
			x.Waits, x.Want = true, agent.Want{Priority: k.shape.Priority, Need: k.shape.Resources, Since: t.m.clock()}
		}
		all[k.shape.Owner] = x
	}
	list := []agent.Claim{}
	for _, x := range all {
		list = append(list, x)
	}
	t.m.core.Claim(t.m.clock(), list)
}

func sortedLeases(m map[wire.LeaseID]*taken) []wire.LeaseID {
	ids := make([]wire.LeaseID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (t *tasks) demand() (out []wire.Demanded) {
	for _, k := range t.kinds {
		n := k.waiting
		for _, l := range t.leases {
			if l.Shape == k.id {
				n -= l.slots - l.used
			}
		}
		if n > 0 {
			out = append(out, wire.Demanded{ID: k.id, Shape: k.shape, Waiting: uint32(n), Since: k.since + t.m.skew})
		}
	}
	return out
}

// giveBack returns the slots of a lease that were not used for a while.
func (t *tasks) giveBack(l *taken) {
	if t.leases[l.Lease] != l || l.idle == 0 || t.m.w.now-l.idle < wire.LeaseIdle || !t.m.up {
		return
	}
	n := l.slots - l.used
	if n <= 0 {
		return // it was cut below what runs
	}
	l.slots, l.idle = l.used, 0
	if l.slots == 0 {
		delete(t.leases, l.Lease)
	}
	t.m.step(agent.LeaseIdle{Lease: l.Lease, Slots: uint32(n)})
}

// send carries a task to the node of a lease, and its end back.
func (t *tasks) send(k *kind, l *taken) {
	w := t.m.w
	back := func(ok bool) func() {
		return func() {
			w.after(w.between(50_000, 5*millisecond), func() {
				l.used--
				if ok {
					t.ended(k)
				} else {
					t.again(k)
				}
			})
		}
	}
	g := w.nodes[l.Node]
	if g == nil || !g.alive {
		w.after(w.between(millisecond, 3*second), back(false)) // its stream breaks
		return
	}
	number := w.laws.number[t.m.name()]
	w.after(w.between(50_000, 5*millisecond), func() { g.tasks.foreign(t, k, l.Lease, number, back(true), back(false), 0) })
}

// foreign runs a task of another node under its lease, once there is room.
func (t *tasks) foreign(of *tasks, k *kind, id wire.LeaseID, number uint32, ok, failed func(), tries int) {
	m := t.m
	if !m.alive || !m.up || !m.core.Leased(id, number) || !of.m.alive {
		failed()
		return
	}
	s, have := m.core.TakeLeased(m.clock(), id)
	if !have {
		if tries > 200 {
			failed()
			return
		}
		m.w.after(20*millisecond, func() { t.foreign(of, k, id, number, ok, failed, tries+1) })
		return
	}
	t.stay(&stay{owner: k.shape.Owner, need: k.shape.Resources, slot: s, lease: id}, k.mean, ok, failed)
}

// stay runs a task here.
func (t *tasks) stay(s *stay, mean int64, ok, failed func()) {
	m := t.m
	t.room = append(t.room, s)
	t.used = t.used.Add(s.need, 1)
	m.w.laws.room(m)
	m.w.after(m.w.between(mean/2, mean*3/2), func() {
		if !m.alive {
			failed()
			return
		}
		t.room = slices.DeleteFunc(t.room, func(x *stay) bool { return x == s })
		t.used = t.used.Add(s.need, -1)
		if m.up {
			if s.lease != 0 {
				m.core.GiveLeased(s.lease, s.need, s.slot)
			} else {
				m.core.GiveRoom(s.need, s.slot)
			}
			t.claim()
			m.core.RoomGiven()
			m.step(agent.Flush{})
		}
		ok()
		t.kick()
	})
}

func (t *tasks) ended(k *kind) {
	k.out--
	k.done++
	if k.endless {
		k.waiting++
	}
	t.kick()
}

// again has a task run once more.
func (t *tasks) again(k *kind) {
	k.out--
	k.waiting++
	t.kick()
}

// restarted tells a new agent what still has room.
func (t *tasks) restarted() {
	for _, s := range t.room {
		s.lease = 0 // it is over; the room is not
		t.m.core.KeepRoom(s.need, s.slot)
	}
	t.void()
	t.m.w.after(10*millisecond, t.kick)
}

func (t *tasks) void() { t.leases, t.seen = map[wire.LeaseID]*taken{}, 0 }

// effect takes what the core says of leases.
func (t *tasks) effect(e agent.Effect) {
	switch e := e.(type) {
	case agent.LeaseTaken:
		t.seen = e.Seq
		t.leases[e.Lease] = &taken{Leased: e.Leased, slots: int(e.Slots)}
	case agent.LeaseLess:
		if l := t.leases[e.Lease]; l != nil {
			if l.slots -= int(e.Slots); l.slots <= 0 {
				delete(t.leases, e.Lease)
			}
		}
	case agent.LeasesEnd:
		t.void()
	case agent.NoRoomEver:
		if e.Held {
			return
		}
		t.m.w.fail("%s: no room ever for shape %d: %s", t.m.name(), e.Shape, e.Why)
	}
	t.m.w.after(0, t.kick)
}

// over reports whether all tasks are, but for those without end.
func (t *tasks) over() bool {
	for _, k := range t.kinds {
		if t.m.alive && !k.endless && k.waiting+k.out > 0 {
			return false
		}
	}
	return true
}
