package core

import (
	"launcher/internal/errs"
	"launcher/wire"
)

// done takes completions. hello: they came with a Hello, which Welcome acknowledges.
func (c *Core) done(n *node, m wire.Done, hello bool) {
	acked := c.durable(n).Acked
	first := m.Seq - uint64(len(m.Items)) + 1
	items := m.Items
	if first <= acked {
		items = items[min(uint64(len(items)), acked+1-first):]
	}
	if len(items) == 0 {
		if !hello && len(m.Items) > 0 {
			c.send(n, wire.MsgAck, wire.Ack{Seq: acked})
		}
		return
	}
	rec := RecEnds{Node: n.id, Epoch: n.epoch, Seq: m.Seq, At: c.now}
	at := map[wire.JobID]int{}
	ok := make([]bool, len(items))
	for k := range items {
		id := items[k].Proc.Job
		j := c.jobs[id]
		ok[k] = j != nil && c.accepts(n, j, items[k].Proc)
		p, known := at[id]
		if !known {
			p = len(rec.Parts)
			at[id] = p
			rec.Parts = append(rec.Parts, EndPart{Job: id})
		}
		c.addEnd(&rec.Parts[p], n, &items[k], ok[k])
	}
	c.record(rec)
	for k := range items {
		if ok[k] {
			c.ended1(n, &items[k])
		}
	}
	for _, p := range rec.Parts {
		if j := c.jobs[p.Job]; j != nil {
			j.touch()
			j.dry = false
			c.maybeEnd(j)
		}
	}
	c.touchNode(n)
	if !hello {
		c.send(n, wire.MsgAck, wire.Ack{Seq: m.Seq})
	}
}

// addEnd puts one end into its part of the record: as part of a run when there is
// nothing more to remember of it.
func (c *Core) addEnd(p *EndPart, n *node, e *wire.Ended, ok bool) {
	p.LogEnd = max(p.LogEnd, e.LogEnd)
	start := e.Started
	if start != 0 {
		start -= n.offset
		if p.First == 0 || start < p.First {
			p.First = start
		}
	}
	j := c.jobs[e.Proc.Job]
	if !ok {
		return // of an attempt that was replaced: only its output counts
	}
	if !j.gang && e.Reason == wire.ReasonNone {
		if total, _ := j.d.total(); total > detailJob && (e.Code == 0 || len(j.d.Details) >= maxDetails) {
			i := e.Proc.Index
			if k := len(p.Runs) - 1; k >= 0 && p.Runs[k].To == i && p.Runs[k].Attempt == e.Proc.Attempt && p.Runs[k].Code == e.Code {
				p.Runs[k].To++
			} else {
				p.Runs = append(p.Runs, EndRun{From: i, To: i + 1, Attempt: e.Proc.Attempt, Code: e.Code})
			}
			return
		}
	}
	it := EndItem{Index: e.Proc.Index, Attempt: e.Proc.Attempt, Rank: e.Proc.Rank, Code: e.Code, Reason: e.Reason, Started: start, Ended: e.Ended - n.offset}
	if e.Err != nil {
		it.Cause = e.Err.Msg
	}
	if j.gang {
		it.Open = j.stepsOf(e.Proc.Try).openOf(e.Proc.Rank)
	}
	p.Items = append(p.Items, it)
}

// accepts reports whether an end may be counted: the node has that attempt, or, after a
// restart of the head, nobody has claimed it yet.
func (c *Core) accepts(n *node, j *job, p wire.Proc) bool {
	if j.gang {
		g := j.d.Gangs[p.Index]
		if g == nil || g.Over || g.Attempt != p.Attempt {
			return false
		}
		for k, x := range g.Nodes {
			if p.Rank >= x.First && p.Rank < x.First+x.Count {
				return x.Node == n.id && g.Epochs[k] == n.epoch
			}
		}
		return false
	}
	if j.d.Done.has(p.Index) || j.d.standing(p.Index).Attempt != p.Attempt {
		return false
	}
	s := n.shares[j.id]
	return s != nil && s.tries.has(p.Index) || j.pending.has(p.Index) || j.d.Cancel != nil && len(c.where(j, p.Index)) == 0
}

// ended1 follows one end that counts in the soft state, after its record was applied.
func (c *Core) ended1(n *node, e *wire.Ended) {
	j, i := c.jobs[e.Proc.Job], e.Proc.Index
	if j == nil {
		return
	}
	if len(j.d.Spec.Outputs) > 0 && j.d.Done.has(i) {
		c.effect(TaskOver{Task: e.Proc.Task, Attempt: e.Proc.Attempt})
	}
	if j.gang {
		c.gangChanged(j, i)
		return
	}
	s := n.shares[j.id]
	if s == nil || !s.tries.has(i) {
		if j.pending.has(i) {
			j.pending.dropOne(i)
			j.requeue(one(i))
		}
		return
	}
	c.unshare(n, s, i)
	if e.Started != 0 && e.Reason == wire.ReasonNone {
		j.timed(e.Ended - e.Started)
	}
	j.requeue(one(i))
	j.leftOff(i, e.Proc.Attempt, c.now)
	c.forgetSteps(j, i, false)
}

// unshare takes a try off a node's share.
func (c *Core) unshare(n *node, s *share, i uint32) {
	s.tries.dropOne(i)
	s.job.live--
	if _, ok := s.running[i]; ok {
		delete(s.running, i)
		s.job.running--
	}
	if s.tries.len() == 0 && !s.asked {
		delete(n.shares, s.job.id)
		delete(s.job.nodes, n.id)
	}
}

// timed smooths how long the job's tasks run.
func (j *job) timed(d int64) {
	d = max(d, 1)
	if j.dur == 0 {
		j.dur = d
	} else {
		j.dur += (d - j.dur) / 8
	}
}

func (c *Core) runningMsg(n *node, m wire.Running) {
	for _, t := range m.Items {
		j, i := c.jobs[t.Try.Job], t.Try.Index
		if j == nil || !t.Running {
			continue
		}
		if g := j.gangs[i]; g != nil && g.attempt == t.Try.Attempt {
			if g.started == 0 {
				g.started = t.Started - n.offset
			}
			j.touch()
			continue
		}
		if s := n.shares[j.id]; s != nil && s.tries.has(i) && j.d.standing(i).Attempt == t.Try.Attempt {
			if _, ok := s.running[i]; !ok {
				s.running[i] = t.Started - n.offset
				j.running++
				j.touch()
			}
		}
	}
}

// returned takes tries back that were never started.
func (c *Core) returned(n *node, m wire.Returned) {
	j := c.jobs[m.Job]
	if s := n.shares[m.Job]; s != nil {
		s.asked = false
		for _, t := range m.Tries {
			if s.tries.has(t.Index) && s.job.d.standing(t.Index).Attempt == t.Attempt {
				c.unshare(n, s, t.Index)
				s.job.requeue(one(t.Index))
				if s.job.d.Unwanted[t.Index] {
					c.endWaiting(s.job, t.Index)
				}
			}
		}
		if s.tries.len() == 0 {
			delete(n.shares, m.Job)
			if j != nil {
				delete(j.nodes, n.id)
			}
		}
	}
	if j == nil {
		return
	}
	if m.Why != nil && m.Why.Kind != errs.Unavailable { // that may change
		j.avoid[n.id] = m.Why.Msg
		c.checkPossible(j)
	}
	j.touch()
	c.maybeEnd(j)
	c.full = true
}

// endWaiting settles a task that was cancelled while it waited.
func (c *Core) endWaiting(j *job, i uint32) {
	if !j.pending.has(i) {
		return
	}
	j.pending.dropOne(i)
	t := j.try(i)
	c.record(RecEnds{At: c.now, Parts: []EndPart{{Job: j.id, Items: []EndItem{{Index: i, Attempt: t.Attempt, Code: -1, Reason: wire.ReasonCancelled, Ended: c.now, Cause: "cancelled before it started"}}}}})
	j.dry = false
	j.touch()
	c.maybeEnd(j)
}
