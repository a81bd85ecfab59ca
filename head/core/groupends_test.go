package core

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"launcher/wire"
)

// again is a new head, which has the journal of the one before.
func (y *yard) again() {
	d := NewDurable(testMachines)
	for _, r := range y.log {
		b, err := DecodeRecord(EncodeRecord(r))
		if err == nil {
			err = d.Apply(b)
		}
		if err != nil {
			y.t.Fatal(err)
		}
	}
	for _, k := range y.nodes {
		k.post = nil
	}
	y.c = New(y.c.cfg, d)
	y.step(Start{})
}

func (y *yard) dies(i int) {
	delete(y.nodes, nodeOf(i))
	y.step(AgentDown{Node: nodeOf(i), Epoch: 1, Proof: true, Cause: "its power is gone"})
}

// made is a group that a worker on another node than the driver's makes.
func (y *yard) made(by int, n uint64, detached bool, cpu ...float64) wire.GroupID {
	s := wire.GroupSpec{ID: gid(y.number(by), n), Job: "d1", Owner: y.number(by), Detached: detached}
	for _, c := range cpu {
		s.Bundles = append(s.Bundles, cpus(c))
	}
	y.say(by, wire.GroupTell{Made: []wire.GroupTold{{Spec: s}}})
	y.rest()
	return s.ID
}

// TestGroupEndsWithItsJob: not with the node of the worker that made it, also when the head
// is another by then; and not before.
func TestGroupEndsWithItsJob(t *testing.T) {
	y := newYard(t, 4, 4, 4)
	id := y.made(1, 1, false, 3, 3)
	if y.news[id].State != wire.GroupCreated {
		t.Fatalf("%+v", y.news[id])
	}
	y.say(1, wire.Programs{Left: []string{"d1"}})
	if len(y.over[nodeOf(1)]) != 0 {
		t.Fatal("a job is said to be over whose driver is there")
	}
	y.dies(1)
	y.rest()
	if g := y.c.groups.all[id]; g == nil || g.state != wire.GroupCreated {
		t.Fatalf("its maker's node is gone: %+v", g)
	}
	y.again()
	y.up(2, 1, 4, nil)
	y.say(2, wire.Programs{Left: []string{"d1"}})
	if y.c.groups.all[id] == nil {
		t.Fatal("it went before the driver's node could say that it is there")
	}
	y.up(0, 1, 4, nil)
	y.rest()
	if g := y.c.groups.all[id]; g == nil || g.state != wire.GroupCreated {
		t.Fatalf("a new head has %+v", g)
	}
	y.say(0, wire.Programs{})
	if y.rest(); y.c.groups.all[id] != nil || len(y.nodes[nodeOf(0)].kept)+len(y.nodes[nodeOf(2)].kept) != 0 {
		t.Fatal("its job is over")
	}
	if !slices.Equal(y.over[nodeOf(2)], []string{"d1"}) {
		t.Fatalf("told to be over: %v", y.over)
	}
	if id = y.made(2, 2, false, 1); y.news[id].State != wire.GroupRemoved {
		t.Fatalf("made after its job: %+v", y.news[id])
	}
	if y.again(); len(y.c.groups.all) != 0 {
		t.Fatal("a new head has it")
	}
}

// TestJobThatNodesHold: what nodes hold of a program for each other ends once the node where
// it was started has said for a while that it is gone, and not while nobody knows.
func TestJobThatNodesHold(t *testing.T) {
	y := newYard(t, 4, 4, 4)
	job := fmt.Sprintf("d%d-7", y.number(0))
	wait := func() {
		for range 8 { // 19 s
			y.rest()
			for i := range 3 {
				if y.nodes[nodeOf(i)] != nil {
					y.beat(i)
				}
			}
		}
	}
	told := func(want ...string) {
		t.Helper()
		for i := 1; i < 3; i++ {
			got := slices.Compact(y.over[nodeOf(i)])
			if !slices.Equal(got, want) {
				t.Fatalf("node %d is told that %v are over, want %v", i, got, want)
			}
		}
	}
	held := wire.Programs{Held: []string{job, "12"}} // that one has a number: it may come again
	y.say(1, held)
	y.say(2, held)
	y.rest() // others are quicker than the driver's node
	y.say(0, wire.Programs{Jobs: []string{job}})
	wait()
	told()
	y.step(AgentDown{Node: nodeOf(0), Epoch: 1, Cause: "the connection broke"})
	wait()
	told()
	y.up(0, 1, 4, nil)
	y.say(0, wire.Programs{Jobs: []string{job}})
	y.say(0, wire.Programs{})
	y.rest()
	told()
	wait()
	told(job)
}

// TestDetachedGroup: it outlives its job, its owner's node and the head, with the bundles that
// are kept.
func TestDetachedGroup(t *testing.T) {
	y := newYard(t, 4, 4, 4)
	id := y.made(1, 1, true, 3, 3)
	was := slices.Clone(y.c.groups.all[id].at)
	y.say(0, wire.Programs{})
	y.dies(1)
	y.again()
	y.up(0, 1, 4, nil)
	y.up(2, 1, 4, nil)
	y.rest()
	g := y.c.groups.all[id]
	if g == nil || g.state != wire.GroupCreated || g.at[0] == g.at[1] {
		t.Fatalf("%+v", g)
	}
	for i, at := range was {
		if at != nodeOf(1) && g.at[i] != at {
			t.Fatalf("bundle %d was moved from %s to %s", i, at, g.at[i])
		}
	}
	y.c.groupRequest(9, wire.GroupRequest{What: wire.GroupRemove, ID: id})
	if y.rest(); y.c.groups.all[id] != nil || len(y.c.d.st.Groups) != 0 {
		t.Fatal("it was removed")
	}
}

// busy has tasks of one CPU, of which there is no end, end and begin on all nodes.
func (y *yard) busy() {
	for i := range 4 {
		k := y.nodes[nodeOf(i)]
		if k == nil {
			continue
		}
		if k.used.Add(k.last, -1).Fits(cpus(1)) {
			k.used = k.used.Add(cpus(1), -1)
		}
		for k.free().Add(k.hold.Need, -1).Fits(cpus(1)) {
			k.used = k.used.Add(cpus(1), 1)
		}
		y.beat(i)
	}
	y.now += 50 * millisecond
	y.step(Tick{})
	for i := range 4 {
		for y.nodes[nodeOf(i)] != nil && y.look(i) {
			y.beat(i)
		}
	}
}

// TestGroupHold: a large group becomes ready on nodes that are never empty by themselves: its
// room is held, all of it, and given back when it is there. What will never come free is not
// held, and a younger group does not take what is.
func TestGroupHold(t *testing.T) {
	y := newYard(t, 3, 3)
	y.busy()
	large := y.made(0, 1, false, 4)
	y.group(2, wire.GroupStrictSpread, 3, 3)
	second := gid(y.number(0), 2)
	third := y.group(3, wire.GroupPack, 1)
	for range 60 {
		if y.busy(); y.c.groups.hold != nil {
			break
		}
	}
	if !strings.Contains(strings.Join(y.c.whyGroups("d1"), "\n"), "room is held for it on p-0, p-1") {
		t.Fatalf("why: %q", y.c.whyGroups("d1"))
	}
	if h := y.c.groups.hold; h == nil || h.group.spec.ID != second {
		t.Fatalf("what cannot be anywhere is in the way: %v", h)
	}
	for range 20 {
		y.busy()
	}
	if y.news[second].State != wire.GroupCreated || y.news[third].State == wire.GroupCreated || y.news[large].State == wire.GroupCreated {
		t.Fatalf("%+v", y.news)
	}
	y.allOrNothing()
	if h := y.nodes[nodeOf(0)].hold; !h.Need.Nothing() || y.c.groups.hold != nil {
		t.Fatalf("still held: %+v, %v", h, y.c.groups.hold)
	}
	y.say(0, wire.GroupTell{Over: []wire.GroupID{second}})
	for range 60 {
		y.busy()
	}
	if y.news[third].State != wire.GroupCreated {
		t.Fatalf("%+v", y.news[third])
	}
	y.say(0, wire.GroupTell{Over: []wire.GroupID{third}})
	for i := range 2 { // an actor is everywhere
		k := y.nodes[nodeOf(i)]
		k.last, k.used = cpus(1), k.used.Add(cpus(1), 1)
	}
	fourth := y.group(4, wire.GroupStrictSpread, 3, 3)
	for range 60 {
		y.busy()
		if y.c.groups.hold != nil {
			t.Fatal("room is held that never comes free")
		}
	}
	y.say(0, wire.GroupTell{Over: []wire.GroupID{fourth}})
}
