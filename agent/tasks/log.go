package tasks

import (
	"encoding/binary"
	"slices"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Kinds of records.
const (
	recFrame     = 1 // a client's frame
	recConnect   = 2
	recWorker    = 3 // a worker is to be started
	recGone      = 4 // type 1: for want of memory
	recGive      = 5 // a task was given to a worker
	recBack      = 6 // and withdrawn
	recLost      = 7
	recState     = 8  // of a snapshot
	recOrphan    = 9  // a task is cancelled whose submitter died
	recRemote    = 10 // a frame of another node's agent about a task that runs there; the client is its number
	recEnding    = 11 // a worker is to end
	recSeq       = 12 // a task was given again to the worker that has it
	recFetched   = 13 // the value of another node's object: its id, then as another agent gives it
	recAgain     = 14 // an object's task runs again
	recFails     = 16 // a task ends by what this agent found out: id, error
	recCopies    = 17 // of an object are to be so many (the client) copies elsewhere: id, u32 node...
	recSpare     = 18 // of a snapshot: body of a PeerCopy
	recMoved     = 20 // an actor has another owner, the client
	recTake      = 21 // and that is this node: the body of a will
	recJobOver   = 19 // nothing of a job, whose key follows, lives any more
	recAway      = 15 // a creation or a call was given to another node, the client: id, u32 attempt, u64 lease
	recBounced   = 23 // another node's task goes back, not begun
	recAgent     = 24 // another agent is away, or (type 1) back
	recParted    = 22 // and comes back, for that node is gone: id, why; type: what is known of it
	recCancelled = 25 // a task that was not begun is over
	recLate      = 26 // a program lets go of objects once it has repeated all: ids
)

// A record is: u8 kind, u8 0, u16 type of a frame, u32 client, i64 now, u32 length, body.
const recHead = 20

func (c *Core) record(kind uint8, client uint32, typ uint16, body []byte) {
	if c.mute {
		return
	}
	c.records = appendRecord(c.records, kind, client, typ, c.now, body)
}

func appendRecord(b []byte, kind uint8, client uint32, typ uint16, now int64, body []byte) []byte {
	b = append(b, kind, 0, byte(typ), byte(typ>>8))
	b = binary.LittleEndian.AppendUint32(b, client)
	b = binary.LittleEndian.AppendUint64(b, uint64(now))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func (c *Core) recordFrame(client uint32, typ uint16, body []byte) {
	c.record(recFrame, client, typ, body)
}

func (c *Core) recordConnect(x Client) {
	if !c.mute {
		c.record(recConnect, x.ID, 0, wire.Marshal(x))
	}
}

func (c *Core) recordRemote(number uint32, typ uint16, body []byte) {
	c.record(recRemote, number, typ, body)
}

func (c *Core) recordLost(x id)    { c.record(recLost, 0, 0, x[:]) }
func (c *Core) recordBack(t *task) { c.record(recBack, 0, 0, t.id[:]) }

func (c *Core) recordGone(cl *client) {
	typ := uint16(0)
	if cl.starved {
		typ = 1
	}
	c.record(recGone, cl.ID, typ, nil)
}

func (c *Core) recordSeq(t *task) {
	c.record(recSeq, t.worker().ID, 0, append32(slices.Clone(t.id[:]), t.seq))
}

func (c *Core) recordAway(t *task, number uint32) {
	if t.away().sentTo = number; !c.mute {
		c.record(recAway, number, 0, t.awayRecord())
	}
}

// recordParted: what is given out next of such a task is not what the other node had.
func (c *Core) recordParted(t *task, why string) {
	if t.away() == nil {
		return // the log does not say where it was
	}
	typ := uint16(0)
	if c.silent {
		typ |= partedSilent
	}
	if c.cut {
		typ |= partedCut
	}
	c.record(recParted, t.away().sentTo, typ, append(slices.Clone(t.id[:]), why...))
}

// Types of recParted.
const (
	partedSilent = 1 << iota // it may be there still
	partedCut                // and only this node cannot reach it
)

func (c *Core) restoreParted(typ uint16, b []byte) error {
	if len(b) < 16 {
		return errs.New(errs.Corrupt, "a record of tasks is damaged")
	}
	if t := c.tasks[id(b[:16])]; t != nil && t.state == running && t.away() != nil && t.away().sentTo != 0 {
		c.silent, c.cut = typ&partedSilent != 0, typ&partedCut != 0
		c.interrupted(t, "", string(b[16:]))
		c.silent, c.cut = false, false
	}
	return nil
}

func (t *task) awayRecord() []byte {
	return binary.LittleEndian.AppendUint64(append32(slices.Clone(t.id[:]), t.attempt), uint64(t.lease))
}

// isGiven: the log says that a call was given out. One that was before has used a retry.
func (l *call) isGiven(t *task) {
	if l == nil {
		return
	}
	if l.at == callLimbo && t.retries > 0 {
		t.retries--
	}
	l.at = callHere
}

func (c *Core) restoreAway(number uint32, b []byte) error {
	if len(b) != 28 {
		return errs.New(errs.Corrupt, "a record of tasks is damaged")
	}
	if t := c.tasks[id(b[:16])]; t != nil {
		c.wasAway(t, u32(b[16:]))
		t.lease = wire.LeaseID(binary.LittleEndian.Uint64(b[20:]))
		if a := t.away(); a != nil {
			a.sentTo = number
		}
		t.call.isGiven(t)
	}
	return nil
}

// newWorker is a worker that was ordered, with the room it has.
type newWorker struct {
	Key   Key
	Shape []byte // key of the shape in its job
	Need  wire.Resources
	Slot  core.Slot
}

func (c *Core) recordWorker(w *client) {
	if !c.mute {
		l := w.levels[0]
		c.record(recWorker, w.ID, 0, wire.Marshal(newWorker{w.pool.key, []byte(l.shape.id), l.need, l.slot}))
	}
}

// given is a task that a worker got, and its room.
type given struct {
	Task    []byte
	Attempt uint32
	Seq     uint32
	Level   int
	Need    wire.Resources
	Slot    core.Slot
}

// shortGive is a given without its room, which an earlier record has.
func shortGive(t *task, level int) []byte {
	b := append(make([]byte, 0, 28), t.id[:]...)
	return append32(append32(append32(b, t.attempt), t.seq), uint32(level))
}

// recordGive tells who got a task. The room is told with the first of several.
func (c *Core) recordGive(t *task, w *client, l *level) {
	if c.mute {
		return
	}
	if len(l.tasks) > 1 || l.logged {
		c.record(recGive, w.ID, 1, shortGive(t, slices.Index(w.levels, l)))
		return
	}
	l.logged = true
	c.record(recGive, w.ID, 0, wire.Marshal(given{t.id[:], t.attempt, t.seq, slices.Index(w.levels, l), l.need, l.slot}))
}

// Restore repeats records of an agent that was killed. Rooms are booked by Retake, and
// nothing is done before the clients are Back.
func (c *Core) Restore(b []byte) error {
	c.mute = true
	defer func() {
		c.mute = false
		c.effects, c.frees, c.touched = c.effects[:0], c.frees[:0], c.touched[:0]
		for _, cl := range c.dirty {
			cl.dirty, cl.out = false, cl.out[:0]
		}
		c.dirty, c.records, c.nudge = c.dirty[:0], c.records[:0], false
	}()
	for len(b) > 0 {
		if len(b) < recHead {
			return errs.New(errs.Corrupt, "a record of tasks is cut short")
		}
		kind, typ, client := b[0], binary.LittleEndian.Uint16(b[2:]), u32(b[4:])
		c.now = int64(binary.LittleEndian.Uint64(b[8:]))
		n := int64(u32(b[16:]))
		b = b[recHead:]
		if n > int64(len(b)) {
			return errs.New(errs.Corrupt, "a record of tasks is cut short")
		}
		if err := c.repeat(kind, client, typ, b[:n]); err != nil {
			return err
		}
		b = b[n:]
		c.effects = c.effects[:0]
	}
	return nil
}

func (c *Core) repeat(kind uint8, from uint32, typ uint16, body []byte) error {
	cl := c.clients[from]
	switch kind {
	case recFrame:
		if cl != nil {
			_ = c.Frame(c.now, from, typ, body) // what was wrong with it then is wrong now
		}
	case recLate:
		if cl != nil {
			cl.letGo(body)
		}
	case recConnect:
		var x Client
		if err := wire.Unmarshal(body, &x); err != nil {
			return err
		}
		c.nextID = max(c.nextID, x.ID)
		return c.Connect(c.now, x)
	case recWorker:
		var n newWorker
		if err := wire.Unmarshal(body, &n); err != nil {
			return err
		}
		c.restoreWorker(from, n)
	case recGone:
		if cl != nil {
			cl.starved = typ == 1
			c.gone(cl, "it ended")
		}
	case recGive:
		return c.restoreGive(cl, typ, body)
	case recOrphan:
		if len(body) != 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		c.cancel(id(body), sdk.CancelRecursive)
	case recBack, recLost:
		if len(body) != 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		if t := c.tasks[id(body)]; kind == recBack && t != nil && t.state == running {
			c.requeue(t)
		} else if o := c.objects[id(body)]; kind == recLost && o != nil && o.state == here && o.kind == sdk.Shared {
			c.lose(o, "it was lost")
		}
	case recAgain:
		if len(body) != 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		if o := c.objects[id(body)]; o != nil {
			c.again(o)
		}
	case recFails:
		if len(body) < 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		if t := c.tasks[id(body[:16])]; t != nil {
			c.fails(t, slices.Clone(body[16:]))
		}
	case recEnding:
		if cl != nil && cl.pool != nil {
			c.ends(cl)
		}
	case recSeq:
		if len(body) != 20 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		if t := c.tasks[id(body[:16])]; t != nil && cl != nil && t.worker() == cl {
			t.seq = u32(body[16:])
			cl.seq = max(cl.seq, t.seq)
		}
	case recRemote:
		switch typ {
		case sdk.MsgYield:
			_ = c.remoteYield(from, body)
		case sdk.MsgUp:
			_ = c.remoteUp(from, body)
		default:
			_ = c.remoteResult(from, body)
		}
	case recMoved:
		if len(body) == 16 {
			c.move(id(body), from)
		}
	case recTake:
		return c.takeActor(body)
	case recJobOver:
		if j := c.jobs[string(body)]; j != nil {
			c.endJob(j)
		}
	case recAway:
		return c.restoreAway(from, body)
	case recBounced:
		if len(body) != 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		if t := c.tasks[id(body)]; t != nil && t.state != done {
			c.bounce(t)
		}
	case recAgent:
		if cl != nil && typ == 1 {
			cl.away = 0
		} else if cl != nil {
			cl.isAway(c.now)
		}
	case recCancelled:
		if len(body) != 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		if t := c.tasks[id(body)]; t != nil {
			c.fails(t, c.cancelled(t))
		}
	case recParted:
		return c.restoreParted(typ, body)
	case recFetched:
		return c.restoreFetched(body)
	case recCopies:
		return c.restoreCopies(from, body)
	case recSpare:
		if len(body) < 16 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		_, err := c.keepSpare(body)
		return err
	case recState:
		return c.restoreState(body)
	default:
		return errs.New(errs.Corrupt, "a record of tasks of kind %d", kind)
	}
	return nil
}

func (c *Core) restoreWorker(from uint32, n newWorker) {
	c.nextID = max(c.nextID, from)
	j := c.jobOf(n.Key.Job)
	l := c.newWorker(from, c.poolOf(n.Key), j).levels[0]
	l.need, l.slot = n.Need, n.Slot
	if s := j.shapes[string(n.Shape)]; s != nil {
		c.settleIn(l, s, n.Slot, 0)
	}
}

func (c *Core) restoreGive(w *client, short uint16, body []byte) error {
	var g given
	if short == 1 {
		if len(body) != 28 {
			return errs.New(errs.Corrupt, "a record of tasks is damaged")
		}
		g = given{Task: body[:16], Attempt: u32(body[16:]), Seq: u32(body[20:]), Level: int(u32(body[24:]))}
	} else if err := wire.Unmarshal(body, &g); err != nil {
		return err
	}
	if w == nil || w.pool == nil || len(g.Task) != 16 {
		return nil
	}
	t := c.tasks[id(g.Task)]
	c.isLet(t)
	if t == nil || t.state != queued && !(t.isCall() && t.state == waiting) {
		return nil
	}
	l := w.levels[0]
	if g.Level > 0 {
		l = c.onTop(w)
	}
	if short == 0 {
		if l.has && l.shape != nil {
			c.leave(l)
		}
		c.settleIn(l, t.shape, g.Slot, 0)
		l.need = g.Need
	}
	if t.state == queued {
		t.shape.queue.n--
	}
	t.call.isGiven(t)
	c.queued -= int64(len(t.body))
	t.state, t.level, t.attempt, t.seq, t.started = running, l, g.Attempt, g.Seq, c.now
	l.tasks, l.logged = append(l.tasks, t), true
	c.settleActor(w, t)
	w.seq = max(w.seq, g.Seq)
	w.pool.idle = slices.DeleteFunc(w.pool.idle, func(x *client) bool { return x == w })
	c.runs(t, 1)
	return nil
}

// Resume is called once after all of Restore: who has nothing to do is idle, and room that
// nothing uses is not booked.
func (c *Core) Resume(now int64) {
	c.now = now
	for _, cl := range c.sortedClients() {
		cl.isAway(now) // until it is Back
		if cl.pool == nil || !cl.up {
			cl.taken = cl.pool != nil
			continue
		}
		for i := len(cl.levels) - 1; i > 0; i-- {
			if l := cl.levels[i]; len(l.tasks) == 0 {
				if l.has {
					c.leave(l)
				}
				cl.levels = slices.Delete(cl.levels, i, i+1)
			}
		}
		l := cl.levels[0]
		l.waits, l.blocked = 0, false // it asks again
		if len(l.tasks) == 0 {
			if l.has {
				c.leave(l)
			}
			if cl.spent {
				c.touched = append(c.touched, l)
			} else if !cl.ending && !slices.Contains(cl.pool.idle, cl) {
				cl.pool.idle = append(cl.pool.idle, cl)
			}
		}
	}
	c.programsDue = true
	c.findRemotes()
	c.resumeCopies()
	c.Retake()
	c.resumeCalls()
}

// leave is leaveRoom of room that is not booked.
func (c *Core) leave(l *level) {
	l.has = false
	c.rests(l)
}
