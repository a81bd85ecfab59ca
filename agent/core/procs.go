package core

import (
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// recovered takes the supervisor's list: what an earlier life of the agent started runs
// on, what it only meant to start is started now.
func (c *Core) recovered(procs []ProcInfo) {
	known := make(map[wire.Proc]ProcInfo, len(procs))
	for _, p := range procs {
		known[p.Proc] = p
	}
	for _, t := range slices.Clone(c.s.tries) {
		if t.reserved() {
			continue
		}
		if t.grouped() {
			c.openGroup(t, true)
		}
		for i := range t.Ranks {
			r := &t.Ranks[i]
			if r.Ended {
				continue
			}
			p, ok := known[t.proc(i)]
			delete(known, t.proc(i))
			switch {
			case ok:
				r.spawned = true
				if p.Exited {
					c.freeEarly(t, r) // the agent before this one may have done so
				}
				if r.Started == 0 {
					c.record(RecStarted{Proc: t.proc(i), PID: p.PID, At: p.At})
				}
			case r.Started != 0:
				// Only the death of the supervisor can do that, and then we would be dead too.
				r.exit = &ProcExited{Proc: t.proc(i), Code: -1, At: c.now}
				c.finish(t, i, wire.ReasonLost, wireErr(errs.New(errs.Lost, "process %s is unknown to the supervisor of node %s", t.proc(i), c.cfg.Hello.Node)))
			case t.Stop != nil:
				r.exit = &ProcExited{Proc: t.proc(i), Code: -1, At: c.now}
				c.finish(t, i, t.Stop.Reason, nil)
			default:
				c.spawn(t, i)
			}
		}
		if t.Fault != nil {
			c.abort(t)
			if t.Stop == nil {
				c.stop(t, wire.ReasonPeer, peerWait(t), t.job.spec.Spec.Grace)
			}
		} else if t.Gang != nil && len(t.Gang.Nodes) > 1 && t.joined() {
			c.fault(t, -1, "the agent of node "+string(c.cfg.Hello.Node)+" was restarted")
		}
		c.stopDue(t)
	}
	for _, p := range procs { // in order, for the sake of a steady outcome
		if _, ours := known[p.Proc]; !ours {
			continue
		}
		if p.Exited {
			c.do(AckExit{Proc: p.Proc})
		} else {
			c.do(Signal{Proc: p.Proc, Sig: sigKILL, Group: true})
		}
	}
	// The records of one step may have been cut anywhere.
	if c.s.phase.Phase == Draining || c.s.phase.Phase == Ending {
		c.giveBackAll()
	}
	if c.s.phase.Phase == Ending {
		c.stopAll(wire.ReasonShutdown, c.s.phase.Grace)
	}
	c.admitting = true
}

func (c *Core) procStarted(ev ProcStarted) {
	t, i := c.s.rank(ev.Proc)
	if t == nil || t.Ranks[i].Ended {
		if c.overtaken[ev.Proc] {
			delete(c.overtaken, ev.Proc)
			return
		}
		c.do(Signal{Proc: ev.Proc, Sig: sigKILL, Group: true})
		return
	}
	if t.Ranks[i].Started == 0 {
		c.record(RecStarted{Proc: ev.Proc, PID: ev.PID, At: ev.At})
	}
	if i == 0 {
		c.started = append(c.started, wire.TryState{Try: t.ID, Running: true, Started: ev.At})
	}
	c.stopDue(t)
}

func (c *Core) procFailed(ev ProcFailed) {
	t, i := c.s.rank(ev.Proc)
	if t == nil || t.Ranks[i].Ended || t.Ranks[i].exit != nil {
		return
	}
	t.Ranks[i].exit = &ProcExited{Proc: ev.Proc, Code: ev.Code, At: c.now}
	if t.Stop == nil && t.Gang != nil {
		c.fault(t, int32(ev.Proc.Rank), c.who(ev.Proc)+" could not start: "+ev.Err.Msg)
	}
	c.finish(t, i, wire.ReasonNone, ev.Err)
}

func (c *Core) procExited(ev ProcExited) {
	t, i := c.s.rank(ev.Proc)
	if t == nil || t.Ranks[i].Ended {
		c.do(AckExit{Proc: ev.Proc})
		return
	}
	r := &t.Ranks[i]
	if r.exit != nil {
		return
	}
	if t.Stop == nil && c.doubtful(ev) {
		return
	}
	r.exit, r.byItself = &ev, t.Stop == nil
	if ev.Leftover {
		c.do(Signal{Proc: ev.Proc, Sig: sigKILL, Group: true})
	}
	if t.Gang != nil && t.Stop == nil {
		if c.leftWell(t, ev.Code) {
			if t.grouped() {
				c.do(LeaveGroup{Gang: t.ID, Rank: ev.Proc.Rank})
			}
		} else {
			c.fault(t, int32(ev.Proc.Rank), c.who(ev.Proc)+" "+howEnded(ev))
		}
	}
	if r.drained {
		c.finish(t, i, wire.ReasonNone, nil)
	} else {
		r.drainBy = c.now + drainWait
		if !ev.Leftover {
			c.freeEarly(t, r)
		}
	}
}

// freeEarly gives the room of a process that has ended back: the next one need not wait
// until the spool has noticed.
func (c *Core) freeEarly(t *Try, r *Rank) {
	if !r.freed && c.early < maxEarly {
		c.early++
		r.freed = true
		c.give(t.need(), r)
		c.admitting = true
	}
}

// exitLeft is the exit code of "left on request, continue me".
const exitLeft = 75

// leftWell reports whether the end of a rank is no failure of the gang.
func (c *Core) leftWell(t *Try, code int32) bool {
	leave, _ := c.leave(t)
	return code == 0 || code == exitLeft && (leave != wire.LeaveNo || t.HasCommit)
}

func (c *Core) who(p wire.Proc) string {
	return "rank " + utoa(int64(p.Rank)) + " on node " + string(c.cfg.Hello.Node)
}

func howEnded(ev ProcExited) string {
	if ev.Signal != 0 {
		s := "was killed by signal " + utoa(int64(ev.Signal)) + signalName(ev.Signal)
		if ev.Why != "" {
			s += ": " + ev.Why
		}
		return s
	}
	return "exited with code " + utoa(int64(ev.Code))
}

func signalName(n int32) string {
	names := map[int32]string{1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM"}
	if s := names[n]; s != "" {
		return " (" + s + ")"
	}
	return ""
}

func (c *Core) outputDrained(ev OutputDrained) {
	t, i := c.s.rank(ev.Proc)
	if t == nil || t.Ranks[i].Ended {
		return
	}
	r := &t.Ranks[i]
	r.drained, r.logEnd = true, ev.LogEnd
	if r.exit != nil {
		c.finish(t, i, wire.ReasonNone, nil)
	}
}

// drainDue gives up on output that does not end.
func (c *Core) drainDue() {
	for _, t := range slices.Clone(c.s.tries) {
		for i := range t.Ranks {
			if r := &t.Ranks[i]; !r.Ended && r.exit != nil && r.drainBy != 0 && c.now >= r.drainBy {
				c.finish(t, i, wire.ReasonNone, nil)
			}
		}
	}
}

// finish writes the end of a process down and gives its room back.
func (c *Core) finish(t *Try, i int, reason wire.Reason, err *errs.Wire) {
	r := &t.Ranks[i]
	x := r.exit
	e := wire.Ended{Proc: t.proc(i), Code: x.Code, Signal: x.Signal, Reason: reason, Started: max(r.Started, x.Started), Ended: x.At, Err: err, RSS: x.RSS, LogEnd: r.logEnd}
	atFault := t.Fault != nil && t.Fault.Rank == int32(e.Proc.Rank)
	if reason == wire.ReasonNone && t.Stop != nil && !r.byItself && !(atFault && t.Stop.Reason == wire.ReasonPeer) {
		e.Reason = t.Stop.Reason
		if e.Reason == wire.ReasonTimeLimit {
			e.Code = 124
		}
	}
	if t.err != nil && err == nil {
		e.Err = t.err
	}
	if atFault && err == nil && r.sent == sentKill {
		e.Err = wireErr(errs.New(errs.Lost, "%s", t.Fault.Cause))
	}
	if e.Reason == wire.ReasonNone && e.Err == nil && x.Why != "" {
		e.Err = wireErr(errs.New(errs.Exhausted, "%s", x.Why))
	}
	if r.Started == 0 && x.Started != 0 {
		c.overtaken[e.Proc] = true
	}
	need, room, group, freed := t.need(), *r, t.grouped(), r.freed
	c.record(RecEnded{Ended: e})
	if freed {
		c.early--
	} else {
		c.give(need, &room)
	}
	c.do(AckExit{Proc: e.Proc})
	c.unreport(e.Proc)
	if c.s.byTry[t.ID] == nil {
		if group {
			c.do(CloseGroup{Gang: t.ID})
		}
		c.forgotten(t.job)
	}
	c.admitting = true
}
