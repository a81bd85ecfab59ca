package tasks

import (
	"cmp"
	"slices"

	"launcher/wire"
)

// leases are slots on other nodes that this node's tasks may run in (wire/lease.go). They
// come and go by the head's word; a task that runs in a slot runs on when the slot is cut.
type leases struct {
	by   map[wire.LeaseID]*leased
	seen uint64 // of the newest Leased, for Demand
	own  uint32 // this node's number
}

// leased is one lease.
type leased struct {
	wire.Leased
	slots int
	used  int
	at    int64 // when it came
	idle  int64 // since when some slot is not used; 0 = all are
	over  bool
}

func newLeases(own uint32) leases { return leases{by: map[wire.LeaseID]*leased{}, own: own} }

// take adds a lease.
func (l *leases) take(now int64, m wire.Leased) *leased {
	x := &leased{Leased: m, slots: int(m.Slots), idle: now, at: now}
	l.by[m.Lease] = x
	l.seen = max(l.seen, m.Seq)
	return x
}

// less takes slots of a lease away.
func (l *leases) less(m wire.LeaseCut) {
	if x := l.by[m.Lease]; x != nil {
		l.shrink(x, int(m.Slots))
	}
}

func (l *leases) shrink(x *leased, n int) {
	if x.slots -= min(x.slots, n); x.slots == 0 {
		x.over = true
		delete(l.by, x.Lease)
	} else if x.used >= x.slots {
		x.idle = 0
	}
}

// end drops all leases: the session with the head that they came by is over.
func (l *leases) end() {
	for _, x := range l.by {
		x.over = true
	}
	clear(l.by)
	l.seen = 0
}

// onNode drops the leases on a node that is gone or cannot be reached, and gives them, to
// be told to the head as idle.
func (l *leases) onNode(number uint32) (out []*leased) {
	for _, x := range l.sorted() {
		if x.Number == number {
			x.over = true
			delete(l.by, x.Lease)
			out = append(out, x)
		}
	}
	return out
}

// sorted gives them in an order that does not depend on maps.
func (l *leases) sorted() []*leased {
	out := make([]*leased, 0, len(l.by))
	for _, x := range l.by {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *leased) int { return cmp.Compare(a.Lease, b.Lease) })
	return out
}

// free counts the slots for a shape that nothing runs in.
func (l *leases) free(shape uint32) (n int) {
	for _, x := range l.by {
		if x.Shape == shape {
			n += max(0, x.slots-x.used)
		}
	}
	return n
}

// slots counts all slots for a shape.
func (l *leases) slots(shape uint32) (n int) {
	for _, x := range l.by {
		if x.Shape == shape {
			n += x.slots
		}
	}
	return n
}

// hasHere reports whether useHere would find one.
func (l *leases) hasHere(shape uint32) bool {
	for _, x := range l.by {
		if x.Shape == shape && x.Number == l.own && x.used < x.slots {
			return true
		}
	}
	return false
}

// useHere takes a slot on this very node: SPREAD and labels may choose it too.
func (l *leases) useHere(shape uint32) *leased {
	for _, x := range l.sorted() {
		if x.Shape == shape && x.Number == l.own && x.used < x.slots {
			if x.used++; x.used >= x.slots {
				x.idle = 0
			}
			return x
		}
	}
	return nil
}

// use takes a slot on another node for a task of a shape, on the wanted node if it has one (0 = any), or
// there only; nil = there is none. depth short tasks may share a slot, one behind the other.
func (l *leases) use(shape, want uint32, only bool, depth int) *leased {
	var best *leased
	for _, x := range l.by {
		if x.Shape != shape || x.used >= x.slots*depth || x.Number == l.own || only && x.Number != want {
			continue
		}
		if best == nil || (x.Number == want) != (best.Number == want) && x.Number == want ||
			(x.Number == want) == (best.Number == want) && cmp.Or(cmp.Compare(x.used, best.used), cmp.Compare(x.Lease, best.Lease)) < 0 {
			best = x
		}
	}
	if best != nil {
		if best.used++; best.used >= best.slots {
			best.idle = 0
		}
	}
	return best
}

// done gives a slot back after its task.
func (l *leases) done(now int64, x *leased) {
	x.used--
	if x.idle == 0 && x.used < x.slots {
		x.idle = now
	}
}

// idle gives up the slots that nothing has used for a while.
func (l *leases) idle(now int64) (out []wire.LeaseBack) {
	for _, x := range l.sorted() {
		if n := x.slots - x.used; n > 0 && x.idle != 0 && now-x.idle >= wire.LeaseIdle {
			out = append(out, wire.LeaseBack{Lease: x.Lease, Slots: uint32(n)})
			l.shrink(x, n)
		}
	}
	return out
}

// due is when idle has something to give up; 0 = nothing.
func (l *leases) due() (at int64) {
	for _, x := range l.by {
		if x.idle != 0 && x.used < x.slots && (at == 0 || x.idle+wire.LeaseIdle < at) {
			at = x.idle + wire.LeaseIdle
		}
	}
	return at
}
