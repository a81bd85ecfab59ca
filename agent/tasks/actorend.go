package tasks

import (
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// How actors end that are told to.

// kill ends an actor, or this life of it.
func (c *Core) kill(cl *client, b []byte) error {
	if len(b) < 20 {
		return errs.New(errs.Corrupt, "Kill is cut short")
	}
	x, flags := id(b[:16]), u32(b[16:])
	t := c.tasks[x]
	switch {
	case !c.mine(x) && cl.Kind != sdk.KindPeer: // its owner is told, and tells its host
		if !c.mute {
			if n := c.OwnerOf(x); n != 0 && n != c.cfg.Number {
				c.tellKill(c.remoteOf(n, cl.key()), x, flags)
			}
		}
	case t == nil || t.actor == nil || t.state == done:
	case flags&sdk.KillForGood != 0:
		c.endActor(t, "it was killed", true)
	default:
		c.stop(t, true)
	}
	return nil
}

// endActor ends an actor for good: at once, or when what it was given is done.
func (c *Core) endActor(t *task, why string, now bool) {
	if t.state == done {
		return
	}
	t.actor.why, t.actor.kill = why, t.actor.kill || now
	if t.state != running {
		c.dies(t, c.actorDied(t, why))
		return
	}
	c.stop(t, now)
}

// stop ends the process of an actor.
func (c *Core) stop(t *task, now bool) {
	w := t.worker()
	t.actor.ends = t.actor.ends || now && t.state == running
	switch {
	case w == nil && t.state != running && c.peerOf(t) != nil: // not begun, for another node
		c.bounce(t)
	case w == nil: // a node is asked where it is, after a restart
	case w.remote != nil && now:
		c.tell(w, sdk.MsgKill, t.id, 0)
	case w.remote != nil:
		c.tell(w, sdk.MsgPeerEnd, t.id)
	case now:
		c.unhost(t) // what comes from now on is for its next life
		c.do(StopWorker{ID: w.ID, Force: true})
	case t.actor.up && !w.ending:
		c.endWorker(w)
	}
}

// unwanted: nothing has the handle of an actor any more.
func (c *Core) unwanted(t *task) {
	if t.state == done {
		c.forget(t)
		return
	}
	c.endActor(t, "nothing had a handle of it any more", false)
}

// peerEnd: the owner of an actor that lives here says that it is to end.
func (c *Core) peerEnd(cl *client, x id) {
	if t := c.tasks[x]; t != nil && t.actor != nil && t.client == cl.ID && t.state != done {
		t.actor.why = "nothing had a handle of it any more"
		c.stop(t, false)
	}
}

// killSaid is the word that an actor is to end, and when it was said; 0 = not yet.
type killSaid struct {
	flags uint32
	at    int64
}

// tellKill tells an actor's owner to end it. For good is said again over a new connection:
// the old one may have broken before it was heard.
func (c *Core) tellKill(r *remote, x id, flags uint32) {
	if r.kills == nil {
		r.kills = map[id]killSaid{}
	}
	k := killSaid{flags: flags | r.kills[x].flags}
	if r.open {
		k.at = c.now
		c.tell(r.cl, sdk.MsgKill, x, flags)
	}
	r.kills[x] = k
}

// killsAgain says what the connection that broke may have kept.
func (c *Core) killsAgain(r *remote) {
	for _, x := range slices.SortedFunc(maps.Keys(r.kills), func(a, b id) int { return slices.Compare(a[:], b[:]) }) {
		k := r.kills[x]
		if k.at == 0 || k.flags&sdk.KillForGood != 0 {
			c.tell(r.cl, sdk.MsgKill, x, k.flags)
		}
		k.at = c.now
		r.kills[x] = k
	}
}

func (r *remote) forgetKills(now int64) {
	maps.DeleteFunc(r.kills, func(_ id, k killSaid) bool { return k.at != 0 && now-k.at >= remoteIdle })
}
