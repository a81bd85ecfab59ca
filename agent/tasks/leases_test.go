package tasks

import (
	"testing"

	"launcher/wire"
)

// TestLeases: slots are used, cut and given up, and never counted twice.
func TestLeases(t *testing.T) {
	l := newLeases(1)
	l.take(1, wire.Leased{Seq: 1, Lease: 10, Shape: 1, Number: 2, Slots: 2})
	l.take(1, wire.Leased{Seq: 2, Lease: 11, Shape: 1, Number: 3, Slots: 1})
	l.take(1, wire.Leased{Seq: 3, Lease: 12, Shape: 2, Number: 3, Slots: 1})
	if l.free(1) != 3 || l.free(2) != 1 || l.seen != 3 {
		t.Fatalf("free %d, %d, seen %d", l.free(1), l.free(2), l.seen)
	}
	a := l.use(1, 3, false, 1)
	if a == nil || a.Number != 3 {
		t.Fatalf("wanted node 3, got %+v", a)
	}
	b, c := l.use(1, 3, false, 1), l.use(1, 0, false, 1)
	if b == nil || b.Number != 2 || c == nil || c.Number != 2 || l.use(1, 0, false, 1) != nil {
		t.Fatalf("got %+v, %+v", b, c)
	}
	// Cut below what runs: what runs runs on.
	l.less(wire.LeaseCut{Lease: 10, Slots: 1})
	if l.free(1) != 0 || l.use(1, 0, false, 1) != nil {
		t.Error("a slot that was cut is free")
	}
	l.done(5, b)
	if l.use(1, 0, false, 1) != nil {
		t.Error("one task of two in one slot has ended, and there is room")
	}
	l.done(6, c)
	if l.free(1) != 1 || l.due() != 1+wire.LeaseIdle {
		t.Errorf("free %d, due %d", l.free(1), l.due())
	}
	if back := l.idle(1 + wire.LeaseIdle); len(back) != 1 || back[0] != (wire.LeaseBack{Lease: 12, Slots: 1}) {
		t.Errorf("idle %v", back)
	}
	if back := l.idle(6 + wire.LeaseIdle); len(back) != 1 || back[0] != (wire.LeaseBack{Lease: 10, Slots: 1}) {
		t.Errorf("idle %v", back)
	}
	if gone := l.onNode(3); len(gone) != 1 || gone[0] != a || !a.over {
		t.Errorf("on node 3: %v", gone)
	}
	l.done(7, a) // late
	l.less(wire.LeaseCut{Lease: 99, Slots: 1})
	l.end()
	if len(l.by) != 0 || l.due() != 0 || l.seen != 0 {
		t.Error("something is left")
	}
}
