package tasks

import (
	"cmp"
	"slices"
	"strings"

	"launcher/wire"
	"launcher/wire/sdk"
)

// state is what its owner says of an actor.
func (a *actor) state() string {
	switch {
	case a.dead != nil:
		return wire.ActorDead
	case a.node != 0:
		return wire.ActorAlive
	case a.life > 0:
		return wire.ActorRestarting
	}
	return wire.ActorPending
}

// whyDead is what an actor died of, in a line.
func whyDead(t *task) string {
	var e sdk.Error
	if a := t.actor; a.why != "" || wire.Unmarshal(a.dead, &e) != nil {
		return a.why
	}
	why, _, _ := strings.Cut(e.Message, "\n")
	return strings.TrimPrefix(why, isDead(t))
}

// Actors lists the actors that this node owns, and those that live here.
func (c *Core) Actors(struct{}) []wire.SDKActor {
	out := []wire.SDKActor{}
	for _, t := range c.tasks {
		if t.actor == nil {
			continue
		}
		a, o := t.actor, t.shape.actor
		x := wire.SDKActor{ID: t.id.String(), Class: t.shape.name, Job: jobID(t.shape.job.key)}
		if o != nil {
			x.Namespace, x.Name, x.Detached = o.Namespace, o.Name, o.Detached
		}
		if w := t.worker(); w != nil && a.up {
			x.Worker = w.PID
		}
		if x.Hosted = !c.mine(t.id); x.Hosted {
			if x.State = wire.ActorPending; a.up {
				x.State = wire.ActorAlive
			}
			out = append(out, x)
			continue
		}
		x.Lives, x.State = a.life, a.state()
		switch x.State {
		case wire.ActorDead:
			x.Why = whyDead(t)
		case wire.ActorPending, wire.ActorRestarting:
			x.Why = c.why(t)
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b wire.SDKActor) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
