package core

import (
	"cmp"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// hello greets the head: everything this node answers for.
func (c *Core) hello() {
	h := c.cfg.Hello
	h.HeadEpoch, h.Clock = c.s.headEpoch, c.now
	h.Deadline = cmp.Or(c.ends.Over/second, h.Deadline)
	h.GPUs = c.pool.gpuList()
	for _, j := range c.s.jobs {
		j.queue.each(func(it wire.Item) {
			h.Tries = append(h.Tries, wire.TryState{Try: tryOf(j.spec.Job, it)})
		})
	}
	for _, t := range c.s.tries {
		if t.gang() {
			h.Gangs = append(h.Gangs, wire.GangState{Gang: t.ID, Started: !t.reserved(), First: t.First, Count: uint32(len(t.Ranks)), Live: uint32(t.live())})
		} else {
			h.Tries = append(h.Tries, wire.TryState{Try: t.ID, Running: true, Started: t.Ranks[0].Started})
		}
	}
	h.Bundles = c.keptBundles()
	h.Programs, c.programsDue = c.programs, false
	h.Reports = c.reportsNeeded()
	h.Unacked = wire.Done{Seq: c.s.seq, Items: slices.Clone(c.s.unacked)}
	c.up, c.welcome = true, false
	c.sent = c.s.seq
	c.started = nil
	c.do(ToHead{Type: wire.MsgHello, Msg: h})
}

// gang reports whether t came by Reserve rather than Assign.
func (t *Try) gang() bool { return t.reserved() || t.Gang != nil }

func (c *Core) headDown() {
	c.voidLeases()
	c.up, c.welcome = false, false
	if c.s.lost == 0 {
		c.record(RecLost{At: c.now})
	}
	// Programs do not wait for a head that is away: they get the last advice known. The
	// reports themselves are sent again to the next one.
	for _, r := range c.reports {
		c.answer(r)
	}
}

func (c *Core) fromHead(msg any) {
	if w, ok := msg.(wire.Welcome); ok {
		c.welcomed(w)
		return
	}
	if !c.welcome {
		return // a head that has not greeted has no say
	}
	switch m := msg.(type) {
	case wire.Job:
		if j := c.s.byJob[m.Job]; j == nil || !same(*j.spec, m) {
			c.record(RecJob{Job: m})
		}
	case wire.Assign:
		c.assign(m)
	case wire.Withdraw:
		c.withdraw(m)
	case wire.Stop:
		c.stopMsg(m)
	case wire.Reserve:
		c.reserve(m)
	case wire.Start:
		c.start(m)
	case wire.Release:
		if t := c.s.byTry[m.Gang]; t != nil && t.reserved() {
			c.release(t)
		}
	case wire.Ack:
		if len(c.s.unacked) > 0 {
			c.record(RecAck{Seq: m.Seq})
			c.settle()
		}
	case wire.Advice:
		c.advice(m)
	case wire.NodeEnds:
		c.ends = m
	case wire.Checkpoint:
		if t := c.s.byTry[m.Try]; t != nil && (!t.HasCommit || m.Step > t.Commit) {
			c.record(RecCommitted{Try: m.Try, Step: m.Step})
		}
		if len(m.Delete) > 0 {
			c.do(DeleteCheckpoints{Job: m.Try.Job, Paths: m.Delete})
		}
	case wire.LeaseOffer:
		c.leaseOffer(m)
	case wire.Leased:
		c.do(LeaseTaken{m})
	case wire.LeaseCut:
		c.leaseCut(m)
	case wire.Infeasible:
		c.do(NoRoomEver{m})
	case wire.Hold:
		c.holdRoom(m)
	case wire.BundleOrder:
		c.bundleOrder(m)
	case wire.GroupNews:
		c.groupNews(m)
	case wire.ActorTake:
		c.do(TakeActor{m})
	case wire.JobsOver:
		c.do(JobsOver{m.Jobs, m.Held})
	case wire.Forget:
		c.forget(m.Job)
	case wire.Shutdown:
		c.shutdown(m)
	}
}

// same compares two jobs by what they encode to; it is asked once per job and session.
func same(a, b wire.Job) bool { return string(wire.Marshal(a)) == string(wire.Marshal(b)) }

// welcomed: the head knows this node again. What it does not want any more ends here.
func (c *Core) welcomed(w wire.Welcome) {
	if !c.up {
		return
	}
	if w.HeadEpoch < c.s.headEpoch {
		c.do(HangUp{Why: "a head of epoch " + utoa(int64(w.HeadEpoch)) + " answered, this node has spoken to epoch " + utoa(int64(c.s.headEpoch)) + ": it was replaced"})
		return
	}
	c.record(RecHead{Epoch: w.HeadEpoch, Grace: w.Grace, Acked: w.Acked, Number: w.Number})
	c.welcome = true
	c.settle()
	c.tellNotice()
	for _, id := range w.Drop {
		if t := c.s.byTry[id]; t == nil {
			if j := c.s.byJob[id.Job]; j != nil {
				if _, ok := j.queue.find(id.Index, id.Attempt); ok {
					c.record(RecDrop{Try: id})
				}
			}
		} else if t.reserved() {
			c.release(t)
		} else {
			c.stop(t, wire.ReasonFenced, 0, 0)
		}
	}
	for _, t := range c.s.tries {
		if f := t.Fault; f != nil {
			c.tell(wire.MsgGangGone, wire.GangGone{Gang: f.Gang, Rank: f.Rank, Cause: f.Cause})
		}
	}
	c.tellPrograms()
	c.tellActors(true)
	c.tellGroups(true)
	c.resend()
	c.leases.demandDue = len(c.leases.demand.Shapes) > 0
	c.leases.demand.Seen = 0
	c.beatAt = c.now
	c.beat()
	c.admitting = true
}

func (c *Core) forget(id wire.JobID) {
	j := c.s.byJob[id]
	if j == nil {
		c.do(ReleaseLogs{Job: id})
		return
	}
	if j.queue.n > 0 {
		c.record(RecStopQueue{Job: id, Reason: wire.ReasonFenced, At: c.now})
	}
	if j.live > 0 {
		// The head says that the job is over, so what runs of it is nobody's.
		for _, t := range slices.Clone(c.s.tries) {
			if t.job != j {
				continue
			} else if t.reserved() {
				c.release(t)
			} else {
				c.stop(t, wire.ReasonFenced, 0, 0)
			}
		}
	}
	delete(c.held, id)
	if j.live == 0 {
		c.record(RecForget{Job: id})
		c.do(ReleaseLogs{Job: id})
	} else {
		j.over = true
	}
}

// forgotten drops a job whose last process ended after the head forgot it.
func (c *Core) forgotten(j *job) {
	if j.over && j.live == 0 {
		c.record(RecForget{Job: j.spec.Job})
		c.do(ReleaseLogs{Job: j.spec.Job})
	}
}

func notHere(p wire.Proc, node wire.NodeID) *errs.Wire {
	return wireErr(errs.New(errs.NotFound, "process %s does not run on node %s", p, node).
		Hint("LAUNCHER_PROC in the environment of a process says which one it is"))
}
