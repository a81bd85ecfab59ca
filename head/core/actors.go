package core

import (
	"cmp"
	"maps"
	"slices"

	"launcher/wire"
)

// Detached actors (wire/actors.go). Their wills are in the journal.

// actorD is a will and who has it.
type actorD struct {
	Will  wire.ActorWill
	Owner uint32   // number of the life of the node that owns it
	Was   []uint32 // and of those before
	Taken bool     // the owner knows
}

// RecActor: an agent owns a detached actor.
type RecActor struct {
	Will  wire.ActorWill
	Owner uint32
}

// RecActorMoved: its owner's node is gone, and another is to own it.
type RecActorMoved struct {
	Actor wire.ObjectID
	Owner uint32 // 0 = there is no node that could
}

// RecActorOver: it is dead.
type RecActorOver struct{ Actor wire.ObjectID }

func (d *Durable) applyActor(r Record) {
	as := d.st.Actors
	switch r := r.(type) {
	case RecActor:
		if as[r.Will.Actor] == nil {
			as[r.Will.Actor] = &actorD{}
		}
		a := as[r.Will.Actor]
		a.Will, a.Owner, a.Taken = r.Will, r.Owner, true
	case RecActorMoved:
		if a := as[r.Actor]; a != nil {
			if a.Owner != 0 {
				a.Was = append(a.Was, a.Owner)
			}
			a.Owner, a.Taken = r.Owner, false
		}
	case RecActorOver:
		delete(as, r.Actor)
	}
}

// actorTold takes what an agent says of the detached actors that it owns.
func (c *Core) actorTold(n *node, m wire.ActorTell) {
	number := c.durable(n).Number
	mine := map[wire.ObjectID]bool{}
	for _, w := range m.Made {
		mine[w.Actor] = true
		if a := c.d.st.Actors[w.Actor]; len(w.Body) > 0 && (a == nil || a.Owner == number) {
			c.record(RecActor{Will: w, Owner: number})
			if w.Name.Name != "" {
				c.names[actorKey{w.Name.Namespace, w.Name.Name}] = w.Name
			}
		}
	}
	for _, id := range sortedActors(c.d.st.Actors) {
		a := c.d.st.Actors[id]
		if a.Owner == number && (slices.Contains(m.Over, id) || m.All && a.Taken && !mine[id]) {
			if k := (actorKey{a.Will.Name.Namespace, a.Will.Name.Name}); c.names[k].Actor == id {
				delete(c.names, k)
			}
			c.record(RecActorOver{Actor: id})
			c.jobsDue = true
		}
	}
}

func sortedActors(m map[wire.ObjectID]*actorD) []wire.ObjectID {
	return slices.SortedFunc(maps.Keys(m), func(a, b wire.ObjectID) int { return slices.Compare(a[:], b[:]) })
}

// loadActors takes up the names of the journal's actors.
func (c *Core) loadActors() {
	for _, a := range c.d.st.Actors {
		if n := a.Will.Name; n.Name != "" {
			c.names[actorKey{n.Namespace, n.Name}] = n
		}
	}
}

// moveActors gives the actors of owners that are certainly dead to other nodes: to the one
// where the actor lives, else to that which owns fewest.
func (c *Core) moveActors() {
	if c.recovering || c.down != nil || len(c.d.st.Actors) == 0 {
		return
	}
	gone := map[uint32]bool{0: true}
	for _, d := range c.d.st.Nodes {
		gone[d.Number] = gone[d.Number] || d.State == nodeGone
	}
	at, owns := map[uint32]*node{}, map[uint32]int{}
	var best []*node
	for _, n := range c.order {
		if c.usable(n) {
			at[c.durable(n).Number] = n
			best = append(best, n)
		}
	}
	for _, a := range c.d.st.Actors {
		owns[a.Owner]++
	}
	for _, id := range sortedActors(c.d.st.Actors) {
		a := c.d.st.Actors[id]
		if !gone[a.Owner] && c.lifeKnown(a.Owner) {
			continue
		}
		n := at[a.Will.Host]
		if n == nil && len(best) > 0 {
			n = slices.MinFunc(best, func(a, b *node) int {
				return cmp.Or(cmp.Compare(owns[c.durable(a).Number], owns[c.durable(b).Number]), byName(a, b))
			})
		}
		to := uint32(0)
		if n != nil {
			to = c.durable(n).Number
		}
		if to == a.Owner {
			continue
		}
		owns[to]++
		c.record(RecActorMoved{Actor: id, Owner: to})
		c.giveActor(a)
		for _, was := range a.Was {
			for _, m := range c.order {
				if m.watches[was] {
					c.send(m, wire.MsgPeer, c.peer(was))
				}
			}
		}
	}
}

// lifeKnown reports whether a number is of the newest life of a node.
func (c *Core) lifeKnown(number uint32) bool {
	for _, d := range c.d.st.Nodes {
		if d.Number == number {
			return true
		}
	}
	return false
}

// giveActor tells the owner of an actor that it is.
func (c *Core) giveActor(a *actorD) {
	for _, n := range c.order {
		if c.durable(n).Number == a.Owner && !a.Taken {
			c.send(n, wire.MsgActorTake, wire.ActorTake{Actor: a.Will.Actor, Body: a.Will.Body})
		}
	}
}

// movedFrom are the actors that a life of a node owned which is over.
func (c *Core) movedFrom(number uint32) (out []wire.ActorMoved) {
	for _, id := range sortedActors(c.d.st.Actors) {
		a := c.d.st.Actors[id]
		if a.Owner == number {
			out = append(out, wire.ActorMoved{Actor: id})
		} else if slices.Contains(a.Was, number) {
			out = append(out, wire.ActorMoved{Actor: id, Number: a.Owner})
		}
	}
	return out
}
