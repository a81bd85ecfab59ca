package core

import (
	"strings"
	"testing"

	"launcher/wire"
)

// wants has a node's tasks of a job wait for room.
func (y *yard) wants(i int, owner string, n uint32, priority int, limits wire.Limits) {
	y.say(i, wire.Demand{Shapes: []wire.Demanded{{ID: 1, Shape: wire.Shape{Resources: cpus(1), Priority: priority, Owner: owner, Limits: limits}, Waiting: n, Since: y.now}}})
}

// settle lets time pass, a tick at a time.
func (y *yard) settle(span int64) {
	for end := y.now + span; y.now < end; {
		y.now += 50 * millisecond
		y.step(Tick{})
	}
}

func slotsOf(offers []wire.LeaseOffer) (n uint32) {
	for _, o := range offers {
		n += o.Slots
	}
	return n
}

// TestLimit: a job is leased no more than it may have, on its own node too, says so, and is
// given more as it gives back.
func TestLimit(t *testing.T) {
	y := newYard(t, 4, 4)
	limits := wire.Limits{"cpu": 3 * wire.Unit}
	y.wants(0, "d1-1", 100, 0, limits)
	y.settle(second)
	if got := slotsOf(y.offer); got != 3 {
		t.Fatalf("%d slots of 3 that it may have", got)
	}
	offers := y.offer
	y.offer = nil
	for _, o := range offers {
		for i := range 2 {
			y.say(i, wire.LeaseGrant{Lease: o.Lease, Slots: o.Slots})
		}
	}
	y.wants(0, "d1-1", 97, 0, limits)
	y.settle(2 * second)
	if len(y.offer) != 0 {
		t.Fatalf("beyond its limit: %+v", y.offer)
	}
	if len(y.never) == 0 || !y.never[len(y.never)-1].Held || !strings.Contains(y.never[len(y.never)-1].Why, "is at its limit of 3 cpu") {
		t.Fatalf("it is told %+v", y.never)
	}
	y.say(0, wire.LeaseBack{Lease: offers[0].Lease, Slots: 1})
	y.settle(second)
	if got := slotsOf(y.offer); got != 1 {
		t.Fatalf("%d slots for one that it gave back", got)
	}
	y.never = nil
	y.say(0, wire.Demand{Shapes: []wire.Demanded{{ID: 2, Shape: wire.Shape{Resources: cpus(4), Owner: "d1-1", Limits: limits}, Waiting: 1, Since: y.now}}})
	if len(y.never) != 1 || y.never[0].Held {
		t.Fatalf("a task that is mostOf than the limit: %+v", y.never)
	}
}

// TestLimitIsLent: what tasks that wait have lent is their job's to use.
func TestLimitIsLent(t *testing.T) {
	y := newYard(t, 4, 4)
	limits := wire.Limits{"cpu": 2 * wire.Unit}
	y.wants(0, "d1-1", 2, 0, limits)
	y.settle(second)
	for _, o := range y.offer {
		for i := range 2 {
			y.say(i, wire.LeaseGrant{Lease: o.Lease, Slots: o.Slots})
		}
	}
	y.offer = nil
	y.wants(0, "d1-1", 5, 0, limits)
	y.settle(2 * second)
	if len(y.offer) != 0 {
		t.Fatalf("beyond its limit: %+v", y.offer)
	}
	y.say(0, wire.Beat{Free: cpus(3), Jobs: []wire.JobUse{{Job: "d1-1", Tasks: cpus(1), Lent: cpus(1)}}}) // one of the two waits
	y.settle(second / 2)
	if got := slotsOf(y.offer); got != 1 {
		t.Fatalf("%d slots for one that is lent", got)
	}
}

// TestLimitOfGroups: a group that can never be within the limit of its job is over at once;
// one that must wait for it keeps no room from others.
func TestLimitOfGroups(t *testing.T) {
	y := newYard(t, 4, 4)
	made := func(n uint64, bundles ...wire.Resources) wire.GroupID {
		id := gid(y.number(0), n)
		y.say(0, wire.GroupTell{Made: []wire.GroupTold{{Spec: wire.GroupSpec{ID: id, Job: "d1", Owner: y.number(0), Bundles: bundles, Limits: wire.Limits{"cpu": 3 * wire.Unit}}}}})
		return id
	}
	big := made(1, cpus(2), cpus(2))
	if m := y.news[big]; m.State != wire.GroupRemoved || m.Why != "it asks for cpu=4; its job is limited to 3 cpu" {
		t.Fatalf("it is %s: %q", m.State, m.Why)
	}
	first, other := made(2, cpus(2)), made(3, cpus(2))
	for range 3 {
		y.rest()
		y.settle(second)
	}
	if m := y.news[first]; m.State != wire.GroupCreated {
		t.Fatalf("the first is %s: %q", m.State, m.Why)
	}
	if m := y.news[other]; m.State != wire.GroupPending || !strings.Contains(m.Why, "is at its limit of 3 cpu") {
		t.Fatalf("the second is %s: %q", m.State, m.Why)
	}
	for id, k := range y.nodes {
		if k.hold.Group == other {
			t.Errorf("%s holds room for it", id)
		}
	}
}

// TestClaim: a job that has less than others has one of its slots wait where they are, and
// one that has as much has not.
func TestClaim(t *testing.T) {
	y := newYard(t, 4, 4)
	busy := func(i int, uses ...wire.JobUse) {
		y.say(i, wire.Beat{Tasks: cpus(4), Jobs: uses})
	}
	busy(0, wire.JobUse{Job: "d1-1", Tasks: cpus(4)})
	busy(1, wire.JobUse{Job: "d1-2", Tasks: cpus(4)})
	y.wants(0, "d1-1", 50, 0, nil)
	y.settle(2 * second)
	if len(y.offer) != 0 {
		t.Fatalf("both have a node: %+v", y.offer)
	}
	busy(1, wire.JobUse{Job: "d1-1", Tasks: cpus(3)}, wire.JobUse{Job: "d1-2", Tasks: cpus(1)})
	y.wants(1, "d1-2", 50, 0, nil)
	y.settle(2 * second)
	if len(y.offer) == 0 {
		t.Fatal("one that has an eighth asks for nothing")
	}
	for _, o := range y.offer {
		if !o.Wait || o.Shape.Owner != "d1-2" || o.Slots != 1 {
			t.Fatalf("%+v", o)
		}
	}
	if n := len(y.offer); n > 4 {
		t.Fatalf("%d slots are asked for where 4 are", n)
	}
	// It has its turn.
	y.say(0, wire.LeaseGrant{Lease: y.offer[0].Lease, Slots: 1})
	if l := y.c.nodes[nodeOf(0)].gives[y.offer[0].Lease]; l == nil || l.wait || l.seq == 0 {
		t.Fatalf("%+v", l)
	}
}
