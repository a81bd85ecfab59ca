package core

import (
	"cmp"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// maxNames bounds the names of actors.
const maxNames = 100_000

// actorKey is where a name stands.
type actorKey struct{ namespace, name string }

// nameRequest serves what agents ask about names of actors. They are known from the agents
// of the nodes that own the actors, which tell them again to a head that was restarted; a
// name goes with the life of its node.
func (c *Core) nameRequest(id uint64, r wire.NameRequest) {
	out := []wire.ActorName{}
	switch r.What {
	case wire.NameTake:
		if len(r.Names) != 1 || r.Names[0].Name == "" {
			c.fail(id, errs.New(errs.Invalid, "a name of an actor is taken one at a time, and is not empty"))
			return
		}
		n := r.Names[0]
		if had, ok := c.named(n); ok {
			out = append(out, had)
			break
		}
		if len(c.names) >= maxNames {
			c.fail(id, errs.New(errs.Exhausted, "there are %d named actors already", len(c.names)))
			return
		}
		c.names[actorKey{n.Namespace, n.Name}] = n
		out = append(out, n)
	case wire.NameFind:
		if len(r.Names) == 1 {
			if had, ok := c.named(r.Names[0]); ok {
				out = append(out, had)
			}
		}
	case wire.NameList:
		for k, n := range c.names {
			if had, ok := c.named(n); ok && (r.Namespace == "" || r.Namespace == k.namespace) {
				had.Meta = nil
				out = append(out, had)
			}
		}
		slices.SortFunc(out, func(a, b wire.ActorName) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
	case wire.NameDrop:
		for _, n := range r.Names {
			if k := (actorKey{n.Namespace, n.Name}); c.names[k].Actor == n.Actor {
				delete(c.names, k)
			}
		}
	case wire.NameMine:
		for k, n := range c.names {
			if n.Actor.Node() == r.Number && c.d.st.Actors[n.Actor] == nil {
				delete(c.names, k)
			}
		}
		for _, n := range r.Names {
			if _, ok := c.named(n); !ok && n.Actor.Node() == r.Number && len(c.names) < maxNames {
				c.names[actorKey{n.Namespace, n.Name}] = n
			}
		}
	default:
		c.fail(id, errs.New(errs.Version, "the head does not know the question %.40q about names", r.What))
		return
	}
	c.answer(id, out)
}

// named finds who has a name, if that one's node lives.
func (c *Core) named(n wire.ActorName) (wire.ActorName, bool) {
	k := actorKey{n.Namespace, n.Name}
	had, ok := c.names[k]
	if ok && c.d.st.Actors[had.Actor] == nil && c.peer(had.Actor.Node()).Gone {
		delete(c.names, k)
		ok = false
	}
	return had, ok
}
