package tasks

import (
	"maps"
	"slices"

	"launcher/wire/sdk"
)

// Away: the connection of a client broke, but its process may come back.
func (c *Core) Away(now int64, id uint32) {
	if cl := c.clients[id]; cl != nil && cl.away == 0 {
		c.now = now
		if cl.Kind == sdk.KindPeer { // a restart does not begin its time anew
			c.record(recAgent, id, 0, nil)
		}
		cl.isAway(now)
		// What was not written is lost; what it asked for is asked again.
		cl.out = cl.out[:0]
	}
}

// isAway: an agent that comes back is not heard before it has said what it has here.
func (cl *client) isAway(now int64) {
	if cl.away == 0 {
		cl.away = now
	}
	if cl.Kind == sdk.KindPeer && cl.unheard == 0 {
		cl.unheard = now
	}
}

// LongAway lists programs that have been away for half of what they may be.
func (c *Core) LongAway(now int64) (ids []uint32) {
	for id, cl := range c.clients {
		if cl.Kind == sdk.KindDriver && cl.away != 0 && now-cl.away >= returnBound/2 {
			ids = append(ids, id)
		}
	}
	return ids
}

// StillThere: the process of a program that is away lives. It comes back when it next wants
// something.
func (c *Core) StillThere(now int64, id uint32) {
	if cl := c.clients[id]; cl != nil && cl.away != 0 {
		cl.away = now
	}
}

// repeatsFor is for how long a program that came back may repeat what it wrote.
const repeatsFor = second

// repeats keeps a Release of a program that came back: a Hold of the same object may be what
// follows in what it repeats, and all that keeps it. true = it is kept. The log has it, as the
// program may hear in the meantime that what it wrote was taken.
func (c *Core) repeats(cl *client, typ uint16, body []byte) bool {
	late := typ == sdk.MsgRelease && cl.back != 0
	switch {
	case late:
		c.record(recLate, cl.ID, 0, body)
		cl.letGo(body)
	case typ == sdk.MsgHold || typ == sdk.MsgRelease:
		_ = sdk.IDs(body, func(x id) { delete(cl.late, x) })
	}
	return late
}

func (cl *client) letGo(body []byte) {
	if cl.late == nil {
		cl.late = map[id]struct{}{}
	}
	_ = sdk.IDs(body, func(x id) { cl.late[x] = struct{}{} })
}

func (cl *client) lateIDs() []byte {
	ids := slices.Collect(maps.Keys(cl.late))
	sortIDs(ids)
	return bytesOfIDs(ids)
}

// hasRepeated: a program that came back has said all of it.
func (c *Core) hasRepeated(cl *client) {
	late := cl.lateIDs()
	if cl.back, cl.late = 0, nil; len(late) > 0 {
		_ = c.Frame(c.now, cl.ID, sdk.MsgRelease, late)
	}
}

// Back: it is there again. It repeats what it asked and reported.
func (c *Core) Back(now int64, id uint32) {
	c.now = now
	if cl := c.clients[id]; cl != nil {
		if cl.Kind == sdk.KindPeer {
			if cl.unheard == 0 { // a new connection came before the end of the old one was seen
				c.record(recAgent, id, 0, nil)
				cl.isAway(now)
			}
			c.record(recAgent, id, 1, nil)
		}
		if cl.Kind != sdk.KindPeer {
			cl.back = now
		}
		cl.away, cl.handed, cl.deaf = 0, cl.busy(), false // what it waits for it says again
		if cl.ending {
			c.sendExit(cl)
			return
		}
		if cl.pool != nil {
			// It has dropped what it had not begun, and passes over what it had.
			clear(cl.known)
			for _, t := range cl.given() {
				cl.seq++
				t.seq, t.twice = cl.seq, true
				c.recordSeq(t)
				c.exec(cl, t)
				if t.cancel { // it may have been told in vain
					c.interrupt(t, 0)
				}
			}
			c.touched = append(c.touched, cl.levels[0])
			if t := cl.actor; t != nil && t.state == running {
				if c.hosts = append(c.hosts, t); t.actor.why != "" || t.actor.ends {
					c.stop(t, t.actor.kill || t.actor.ends)
				}
			}
		}
		c.unsubscribe(cl)
		// Which of its tasks waits for what it does not say: all of it is put down to the one
		// on top, and those below wait as long as that.
		for i, l := range cl.levels {
			if top := cl.top(); l != top && len(l.tasks) > 0 && i < slices.Index(cl.levels, top) {
				c.lends(l)
			}
		}
	}
}
