package core

import (
	"cmp"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// report is a program's report that a head has not answered yet, or that the next one may
// need: which ranks have reported a step is known to the head only while it lives.
type report struct {
	msg   wire.Report
	heard bool   // a head has answered it
	req   uint64 // who waits for the answer; 0 = nobody any more
	until int64
}

// maxReports bounds what is kept for a head that is away or slow.
const maxReports = 1024

// helloReports bounds what of them Hello has, in bytes.
const helloReports = 4 << 20

// local answers a request of a process of this node.
func (c *Core) local(ev Local) {
	if ev.Proc == (wire.Proc{}) && ev.Op == OpLeave { // a worker, or what it has started
		leave, deadline := c.nodeLeave()
		if leave == wire.LeaveNo && c.ends.Leave != wire.LeaveNo {
			leave, deadline = c.ends.Leave, c.ends.By
		}
		c.do(LocalReply{Req: ev.Req, Leave: leave, Deadline: deadline / second})
		return
	}
	t, i := c.s.rank(ev.Proc)
	if t == nil || t.reserved() || t.Ranks[i].Ended {
		c.do(LocalReply{Req: ev.Req, Err: notHere(ev.Proc, c.cfg.Hello.Node)})
		return
	}
	switch ev.Op {
	case OpReport:
		c.report(t, i, ev)
	case OpLeave:
		leave, deadline := c.leave(t)
		c.do(LocalReply{Req: ev.Req, Leave: leave, Deadline: deadline})
	case OpParams:
		c.do(LocalReply{Req: ev.Req, Params: t.Item.Params})
	case OpCheckpoint:
		c.do(LocalReply{Req: ev.Req, Checkpoint: t.Item.Checkpoint, Step: t.Item.Step})
	case OpJoin:
		c.join(t, i, ev)
	default:
		c.do(LocalReply{Req: ev.Req, Job: t.job.spec, Step: max(t.Ranks[i].step, t.Item.Step)})
	}
}

func (c *Core) join(t *Try, i int, ev Local) {
	if t.Fault != nil {
		c.do(LocalReply{Req: ev.Req, Err: wireErr(errs.New(errs.Fenced, "the gang %s cannot go on: %s", t.ID, t.Fault.Cause))})
		return
	}
	if !t.Ranks[i].Joined {
		open := !t.grouped()
		c.record(RecJoined{Proc: ev.Proc})
		if open {
			c.openGroup(t, false)
		}
	}
	join := &Join{Gang: t.ID, Rank: ev.Proc.Rank, World: 1, LocalRank: uint32(i), LocalWorld: uint32(len(t.Ranks))}
	if t.Gang != nil {
		join.World = t.Gang.World
	}
	c.do(LocalReply{Req: ev.Req, Join: join})
}

// report passes a report on. The caller gets the head's advice, or after a while, or
// with the head away, the last advice known.
func (c *Core) report(t *Try, i int, ev Local) {
	if ev.Step < 0 {
		ev.Step = max(t.Ranks[i].step, t.Item.Step) + 1
	}
	t.Ranks[i].step = ev.Step
	r := &report{msg: wire.Report{Proc: ev.Proc, Step: ev.Step, Metrics: ev.Metrics, Checkpoint: ev.Checkpoint, Time: c.now, No: c.nextNo()}, req: ev.Req, until: c.now + reportWait}
	if len(c.reports) >= maxReports {
		c.trim()
	}
	c.reports = append(c.reports, r)
	c.waiting[ev.Req] = r
	if !c.welcome {
		c.answer(r)
		return
	}
	c.send(r)
}

// nextNo numbers reports; no earlier life of the agent has given a greater one.
func (c *Core) nextNo() uint64 {
	c.repNo++
	return uint64(c.cfg.Hello.Restarts)<<32 + c.repNo
}

func (c *Core) send(r *report) {
	c.repSeq++
	r.msg.Seq = c.repSeq
	c.tell(wire.MsgReport, r.msg)
}

// resend gives a new session what the last one may have lost, in order.
func (c *Core) resend() {
	c.repSeq = 0
	for _, r := range c.reports {
		if !r.heard {
			c.send(r)
		}
	}
}

// reportsNeeded lists the reports that a head may need which knows of none, the newest of them
// when there are too many.
func (c *Core) reportsNeeded() []wire.Report {
	var out []wire.Report
	room := helloReports
	for _, r := range slices.Backward(c.reports) {
		m := r.msg
		m.Seq = 0
		if m.Proc.Rank != 0 {
			m.Metrics = nil
		}
		if room -= len(wire.Marshal(m)); room < 0 {
			break
		}
		out = append(out, m)
	}
	slices.Reverse(out)
	return out
}

// settle drops the reports of tries whose end the head has on disk, and with it which steps
// their ranks had reported.
func (c *Core) settle() {
	c.reports = slices.DeleteFunc(c.reports, func(r *report) bool {
		t := r.msg.Proc.Try
		return r.heard && c.s.byTry[t] == nil && !slices.ContainsFunc(c.s.unacked, func(e wire.Ended) bool { return e.Proc.Try == t })
	})
}

// answer lets a caller go with the advice that is known now. The report itself stays
// until the head has answered it.
func (c *Core) answer(r *report) {
	if r.req == 0 {
		return
	}
	reply := LocalReply{Req: r.req}
	if t := c.s.byTry[r.msg.Proc.Try]; t != nil {
		reply.Leave, reply.Deadline = c.leave(t)
	}
	delete(c.waiting, r.req)
	r.req = 0
	c.do(reply)
}

// trim drops the oldest report, one without a checkpoint if there is one.
func (c *Core) trim() {
	i := max(0, slices.IndexFunc(c.reports, func(r *report) bool { return r.msg.Checkpoint == "" }))
	c.answer(c.reports[i])
	c.reports = slices.Delete(c.reports, i, i+1)
}

// unreport answers who still waits on behalf of a process that has ended; its reports
// are still good.
func (c *Core) unreport(p wire.Proc) {
	for _, r := range c.reports {
		if r.msg.Proc == p {
			c.answer(r)
		}
	}
}

// advice is the head's word on whether a try should go on.
func (c *Core) advice(m wire.Advice) {
	if t := c.s.byTry[m.Try]; t != nil && (t.Leave != m.Leave || t.Deadline != m.Deadline) {
		c.record(RecAdvice{Try: m.Try, Leave: m.Leave, Deadline: m.Deadline})
	}
	c.reports = slices.DeleteFunc(c.reports, func(r *report) bool {
		if m.Seq != 0 && r.msg.Seq == m.Seq && !r.heard {
			c.answer(r)
			r.heard = true
		}
		return r.heard && r.msg.Proc.Try == m.Try && r.msg.Step < m.Before
	})
}

// leave says whether a try should save and leave, and by when (unix seconds): what the
// head advised, else what this node knows by itself.
func (c *Core) leave(t *Try) (wire.LeaveReason, int64) {
	switch {
	case t.Leave != wire.LeaveNo:
		return t.Leave, t.Deadline / second
	case t.Stop != nil && t.Stop.Reason == wire.ReasonPruned:
		return wire.LeavePruned, t.Stop.Kill / second
	case t.Stop != nil:
		return wire.LeavePreempted, t.Stop.Kill / second
	}
	if leave, by := c.nodeLeave(); leave != wire.LeaveNo {
		return leave, by / second
	}
	end := t.limit()
	// A head says in time that it leaves, unless it has been away for long: a gang is not to be
	// parted for less.
	if c.ends.By == 0 || c.s.lost != 0 && c.now >= c.s.lost+leaseTime {
		end = c.deadline(t)
	}
	if end != 0 && c.now >= end-margin(t, end) {
		return wire.LeaveDeadline, end / second
	}
	return wire.LeaveNo, c.deadline(t) / second
}

// nodeLeave says whether the node by itself knows that it is taken away, and when it ends.
func (c *Core) nodeLeave() (wire.LeaveReason, int64) {
	switch {
	case c.s.phase.Phase == Draining && c.s.phase.Stop != 0:
		return wire.LeavePreempted, c.s.phase.Stop
	case c.noticed:
		return wire.LeavePreempted, c.notice.By
	}
	return wire.LeaveNo, cmp.Or(c.ends.By, c.cfg.Hello.Deadline*second)
}

// deadline is when a try ends at the latest, by its time limit or its node's; 0 = never.
func (c *Core) deadline(t *Try) int64 {
	end := t.limit()
	if _, d := c.nodeLeave(); d != 0 && (end == 0 || d < end) {
		end = d
	}
	return end
}

// margin is how long before its deadline a program is told to save: a tenth of its time,
// at most two minutes.
func margin(t *Try, end int64) int64 { return min((end-t.At)/10, 120*second) }
