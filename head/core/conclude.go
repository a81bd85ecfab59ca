package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/jobs"
	"launcher/wire"
)

// cause says in a line how a process ended, and which: task, rank and node.
func (j *jobD) cause(x *detail) string {
	var who string
	switch {
	case j.Spec.Ranks > 1 && j.Spec.Kind != wire.KindArray && j.Spec.Kind != wire.KindSweep:
		who = fmt.Sprintf("rank %d", x.Rank)
	case isGang(&j.Spec):
		who = fmt.Sprintf("task %d.%d rank %d", j.ID, x.Index, x.Rank)
	case j.Spec.Kind == wire.KindRun:
		who = "the command"
	default:
		who = fmt.Sprintf("task %d.%d", j.ID, x.Index)
	}
	if x.Node != "" {
		who += " on " + string(x.Node)
	}
	return who + " " + howEnded(x)
}

func howEnded(x *detail) string {
	s := ""
	switch {
	case x.Lost:
		return "was lost: " + x.Cause
	case x.Reason == wire.ReasonTimeLimit:
		s = "ran over its time limit"
	case x.Reason == wire.ReasonMemory:
		s = "used more memory than it may"
	case x.Reason == wire.ReasonCancelled:
		s = "was cancelled"
	case x.Reason == wire.ReasonPeer:
		s = "was stopped because a peer failed"
	case x.Code < 0:
		s = "did not start"
	case x.Code > 128 && x.Code < 160:
		s = fmt.Sprintf("was killed by signal %d", x.Code-128)
	default:
		s = fmt.Sprintf("exited with %d", x.Code)
	}
	if x.Cause != "" {
		s += ": " + x.Cause
	}
	return s
}

// moved reports whether launcher itself took the attempt off its node, so that running
// it again is nobody's failure. One that came to its end in the time it was given is done.
func moved(e EndItem) bool {
	return e.Code != 0 && (e.Reason == wire.ReasonPreempted || e.Reason == wire.ReasonFenced || e.Reason == wire.ReasonShutdown)
}

// left reports whether an exit code means "left on request, continue me".
func (j *jobD) left(i uint32, a wire.Attempt, code int32) bool {
	if code != 75 {
		return false
	}
	c := j.Checks[i]
	return j.Told[i].Attempt == a || c != nil && slices.ContainsFunc(c.List, func(x RecCheckpoint) bool { return x.Attempt == a })
}

// settleGang concludes a gang's attempt once every rank has ended or is lost.
func (d *Durable) settleGang(j *jobD, i uint32, at int64) {
	g := j.Gangs[i]
	if g == nil || g.Over || len(g.Ends) < int(g.World) {
		return
	}
	g.Over = true
	var lost, worst, any *detail
	free, mv := true, false
	for r := range g.World {
		e := g.Ends[r]
		switch {
		case e.Lost:
			if lost == nil {
				lost = e
			}
			free = free && e.Free
		case moved(e.EndItem):
			mv = true
		case e.Code != 0 && e.Reason != wire.ReasonPeer:
			if worst == nil || e.Ended < worst.Ended {
				worst = e
			}
		case e.Code != 0 && any == nil:
			any = e
		}
	}
	if f := g.Fault; f != nil && f.Rank >= 0 && uint32(f.Rank) < g.World && lost == nil {
		// The rank at fault, not the one whose exit came first: ranks that fail because
		// a peer is gone exit too.
		if e := g.Ends[uint32(f.Rank)]; e.Code != 0 {
			c := *e
			if c.Reason == wire.ReasonPeer {
				c.Reason = wire.ReasonNone
			}
			c.Cause = cmp.Or(f.Cause, c.Cause)
			worst = &c
		}
	}
	e := jobs.End{Index: i, Attempt: g.Attempt, Time: at}
	switch {
	case lost != nil:
		e.Lost, e.Code, e.Reason, e.Rank, e.Cause = true, -1, wire.ReasonLost, lost.Rank, lost.Cause
		j.Details[i] = lost
	case mv:
		free = true
	case worst != nil:
		e.Code, e.Reason, e.Rank, e.Cause = worst.Code, worst.Reason, worst.Rank, j.cause(worst)
		e.Left = j.left(i, g.Attempt, worst.Code)
		j.Details[i] = worst
	case any != nil:
		// Stopped because a node's part could not go on.
		e.Lost, e.Code, e.Reason, e.Rank = true, -1, wire.ReasonLost, any.Rank
		if g.Fault != nil {
			e.Cause = g.Fault.Cause
		}
		free = false
		j.Details[i] = any
	default:
		j.Details[i] = g.Ends[0]
	}
	d.conclude(j, e, mv && lost == nil || lost != nil && free)
}

// conclude decides what becomes of a task whose newest attempt ended. free: the attempt
// was moved or lost track of by launcher and is simply run again.
func (d *Durable) conclude(j *jobD, e jobs.End, free bool) {
	i := e.Index
	s := j.standing(i)
	unwanted := j.Cancel != nil || j.Unwanted[i]
	switch {
	case e.Reason == wire.ReasonCancelled || unwanted && (e.Lost || free || e.Code != 0):
		e.Reason, e.Lost = wire.ReasonCancelled, false
		j.settle(i, fate{Code: e.Code, State: wire.StateCancelled})
		if j.Cancel == nil {
			j.m.Ended(e)
		}
		d.over(j, e.Time)
		return
	case e.Lost && !free:
		j.Losses++
		if s.Losses < maxLosses {
			j.Stands.set(one(i), standing{s.Attempt + 1, s.Losses + 1})
			return
		}
		e.Cause = fmt.Sprintf("lost %d times with its node or worker, the last time: %s", maxLosses+1, e.Cause)
	case free:
		j.Stands.set(one(i), standing{s.Attempt + 1, s.Losses})
		return
	}
	switch v := j.m.Ended(e); v {
	case jobs.Retry:
		if !e.Left {
			j.Restarts++
		}
		j.Stands.set(one(i), standing{s.Attempt + 1, s.Losses})
	case jobs.Failed:
		f := fate{Code: e.Code, State: wire.StateFailed}
		if e.Lost {
			f.State = wire.StateLost
		}
		j.settle(i, f)
	default:
		j.settle(i, fate{Code: e.Code, State: wire.StateDone, Pruned: v == jobs.Pruned})
	}
	d.over(j, e.Time)
}

func (j *jobD) settle(i uint32, f fate) {
	j.Done.set(one(i), f)
	j.Stands.clear(one(i))
	delete(j.Told, i)
	delete(j.Unwanted, i)
	switch f.State {
	case wire.StateDone:
		j.Good++
	case wire.StateCancelled:
		j.Cancelled++
	default:
		j.Bad++
	}
}
