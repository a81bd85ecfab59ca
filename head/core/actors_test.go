package core

import (
	"slices"
	"testing"

	"launcher/wire"
)

// TestDetachedActorMoves: the head gives an actor whose owner is certainly dead to the node
// where it lives, else to another, and says so to who follows the dead one; a new head goes on
// with it until the new owner has said that it knows.
func TestDetachedActorMoves(t *testing.T) {
	y := newYard(t, 4, 4, 4)
	x := wire.NewObjectID(y.number(0), 1, 1, 0)
	will := wire.ActorWill{Actor: x, Job: "d1", Host: y.number(2), Name: wire.ActorName{Namespace: "n", Name: "a", Actor: x}, Body: []byte("b")}
	y.say(0, wire.ActorTell{Made: []wire.ActorWill{will}})
	y.say(1, wire.PeerAsk{Numbers: []uint32{y.number(0)}})
	owner := func() uint32 { return y.c.d.st.Actors[x].Owner }
	first := y.number(0)
	y.step(AgentDown{Node: nodeOf(0), Epoch: 1})
	y.now += 20 * second
	for i := 1; i < 3; i++ {
		y.beat(i)
	}
	y.step(Tick{})
	if owner() != first {
		t.Fatal("it was moved without proof that its owner is dead")
	}
	y.dies(0)
	if owner() != y.number(2) || !slices.Equal(y.takes[nodeOf(2)], []wire.ObjectID{x}) {
		t.Fatalf("its owner is %d, told %v", owner(), y.takes)
	}
	if p := y.peers[nodeOf(1)]; !p.Gone || !slices.Equal(p.Moved, []wire.ActorMoved{{Actor: x, Number: y.number(2)}}) {
		t.Fatalf("told %+v", p)
	}
	y.again() // before the owner has said so
	d, err := DecodeDurable(y.c.d.Encode(), testMachines)
	if err != nil || !d.Equal(y.c.d) || d.st.Actors[x] == nil {
		t.Fatalf("a snapshot has %v: %v", d, err)
	}
	y.up(1, 1, 4, nil)
	y.up(2, 1, 4, nil)
	if len(y.takes[nodeOf(2)]) != 2 || !y.c.lives("d1") {
		t.Fatalf("a new head tells %v", y.takes)
	}
	y.say(2, wire.ActorTell{All: true, Made: nil}) // of before it was told
	y.say(2, wire.ActorTell{Made: []wire.ActorWill{will}})
	y.up(2, 1, 4, nil)
	if len(y.takes[nodeOf(2)]) != 2 {
		t.Fatal("it is told once more")
	}
	y.c.nameRequest(9, wire.NameRequest{What: wire.NameMine, Number: y.number(2)})
	if had, ok := y.c.named(will.Name); !ok || had.Actor != x {
		t.Fatal("its name is lost")
	}
	y.dies(2) // where it lived
	if owner() != y.number(1) || !slices.Equal(y.takes[nodeOf(1)], []wire.ObjectID{x}) {
		t.Fatalf("its owner is %d, told %v", owner(), y.takes)
	}
	if p := y.c.peer(first); !slices.Equal(p.Moved, []wire.ActorMoved{{Actor: x, Number: y.number(1)}}) {
		t.Fatalf("%+v", p)
	}
	will.Host = y.number(1)
	y.say(1, wire.ActorTell{Made: []wire.ActorWill{will}})
	y.say(1, wire.ActorTell{All: true})
	if _, ok := y.c.named(will.Name); ok || y.c.d.st.Actors[x] != nil {
		t.Fatal("it is dead")
	}
}
