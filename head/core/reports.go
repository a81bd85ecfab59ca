package core

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"launcher/jobs"
	"launcher/wire"
)

// leave says that a try was told to leave, and when it is stopped if it does not.
type leave struct {
	attempt  wire.Attempt
	why      wire.LeaveReason
	deadline int64 // 0 = never
	at       int64 // when it was told
	stopped  bool
}

// report takes one call of report(): checkpoints, the machine's opinion, the answer.
func (c *Core) report(n *node, r wire.Report) {
	j, i := c.jobs[r.Proc.Job], r.Proc.Index
	if j == nil || j.d.Done.has(i) || j.d.standing(i).Attempt != r.Proc.Attempt || !j.holds(n, i) {
		c.tellStale(n, r)
		return
	}
	c.tellAdvice(j, i, c.reported(j, r, false), n)
	l := j.leaving[i]
	adv := wire.Advice{Seq: r.Seq, Try: r.Proc.Try, Before: j.stepsOf(r.Proc.Try).before()}
	if l.attempt == r.Proc.Attempt {
		adv.Leave, adv.Deadline = l.why, l.deadline
		if l.deadline != 0 {
			adv.Deadline += n.offset
		}
	}
	c.send(n, wire.MsgAdvice, adv)
	c.maybeEnd(j)
}

// tellAdvice passes on what the machine said to a report of a task. but is as in tellLeave.
func (c *Core) tellAdvice(j *job, i uint32, a jobs.Advice, but *node) {
	if a.Leave != wire.LeaveNo {
		c.tellLeave(j, i, a.Leave, c.now+j.grace, but)
	}
	for _, o := range a.Stop {
		c.tellLeave(j, o, wire.LeavePruned, c.now+j.grace, nil)
	}
}

// reported counts a report, unless it was counted before: agents send those again that they
// got no answer to. kept says that it may have been counted by a head before this one. The
// result is what the machine says to it.
func (c *Core) reported(j *job, r wire.Report, kept bool) (a jobs.Advice) {
	s := j.stepsOf(r.Proc.Try)
	if r.No != 0 && r.No <= s.heard[r.Proc.Rank] {
		return a
	}
	s.heard[r.Proc.Rank] = r.No
	if x := j.d.committed(r.Proc.Try); !kept || x == nil || r.Step > x.Step {
		c.stepped(j, s, r)
	}
	if r.Proc.Rank != 0 {
		return a
	}
	if _, ok := j.d.m.(jobs.Forgetful); ok {
		a = j.d.m.Report(r)
	} else if j.d.news(r) {
		c.record(RecReport{Report: r})
		a = c.d.advice
		j.dry = false
	}
	j.reportedAt(r)
	j.metrics, j.step = r.Metrics, r.Step
	j.touch()
	return a
}

// reportsKept takes the reports that a node has kept for a head that knows of none, before
// anything else that it says. What is to be told of them is for when the node's claims are
// known.
func (c *Core) reportsKept(n *node, rs []wire.Report) (tell func()) {
	var later []func()
	told := map[wire.Try]bool{}
	for _, r := range rs {
		j, t := c.jobs[r.Proc.Job], r.Proc.Try
		if j != nil && c.accepts(n, j, r.Proc) {
			a := c.reported(j, r, true)
			later = append(later, func() { c.tellAdvice(j, t.Index, a, nil) })
			if x := j.d.committed(t); x != nil && !told[t] {
				later = append(later, func() { c.send(n, wire.MsgCheckpoint, wire.Checkpoint{Try: t, Step: x.Step, Path: x.Path}) })
			}
		} else if !told[t] {
			later = append(later, func() { c.tellStale(n, r) })
		}
		told[t] = true
	}
	return func() {
		for _, f := range later {
			f()
		}
	}
}

// tellStale answers a report of an attempt that was replaced: it is not to go on.
func (c *Core) tellStale(n *node, r wire.Report) {
	c.send(n, wire.MsgAdvice, wire.Advice{Seq: r.Seq, Try: r.Proc.Try, Leave: wire.LeavePreempted, Deadline: c.now + n.offset, Before: math.MaxInt64})
}

// news reports whether a report has not been taken yet: an agent sends those again that
// it got no answer to.
func (j *jobD) news(r wire.Report) bool {
	last := j.Reported[r.Proc.Index]
	return r.Proc.Attempt != last.Attempt || r.No > last.No || r.No == 0 && r.Time > last.Time
}

// tellLeave tells a task's newest attempt to leave. but is a node that learns it by the
// answer to its report.
func (c *Core) tellLeave(j *job, i uint32, why wire.LeaveReason, deadline int64, but *node) {
	t := j.try(i)
	l, told := j.leaving[i]
	told = told && l.attempt == t.Attempt
	if told && (deadline == 0 || l.deadline != 0 && l.deadline <= deadline) {
		return
	}
	on := c.where(j, i)
	if len(on) == 0 || j.d.Done.has(i) {
		return
	}
	if !told {
		c.record(RecTold{Job: j.id, Index: i, Attempt: t.Attempt, Leave: why})
		l = leave{attempt: t.Attempt, why: why, at: c.now}
	}
	l.deadline, why = deadline, l.why
	j.leaving[i] = l
	for _, n := range on {
		if n == but {
			continue
		}
		a := wire.Advice{Try: t, Leave: why, Deadline: deadline}
		if deadline != 0 {
			a.Deadline += n.offset
		}
		c.send(n, wire.MsgAdvice, a)
	}
}

// watchLeaves stops what was told to leave and did not.
func (c *Core) watchLeaves() {
	for _, j := range c.queue {
		for _, i := range sortedKeys(j.leaving) {
			l := j.leaving[i]
			if l.deadline == 0 || c.now < l.deadline || l.stopped {
				continue
			}
			l.stopped = true
			j.leaving[i] = l
			why := wire.ReasonPreempted
			if l.why == wire.LeavePruned {
				why = wire.ReasonPruned
			}
			for _, n := range c.where(j, i) {
				c.send(n, wire.MsgStop, wire.Stop{Job: j.id, Tries: []wire.Try{j.try(i)}, Reason: why, Grace: j.grace})
			}
		}
	}
}

// steps gathers, per step, which ranks of a task have reported it. It dies with the head, but
// not what it needs to be gathered again: agents keep reports for the next head while ranks
// live, and the ends of ranks are recorded with the steps that others had not reported.
type steps struct {
	attempt wire.Attempt
	open    map[int64]*stepSeen
	heard   map[uint32]uint64 // the newest report, by rank
	top     int64             // the greatest step reported
	dead    []string          // directories of steps that were overtaken before every rank had reported them
}

type stepSeen struct {
	ranks rangeSet
	dir   string
	score *float64
}

// stepsOf gives what is known of an attempt's steps.
func (j *job) stepsOf(t wire.Try) *steps {
	s := j.steps[t.Index]
	if s != nil && s.attempt == t.Attempt {
		return s
	}
	s = &steps{attempt: t.Attempt, open: map[int64]*stepSeen{}, heard: map[uint32]uint64{}, top: -1}
	j.steps[t.Index] = s
	if g := j.d.Gangs[t.Index]; g != nil && g.Attempt == t.Attempt {
		for _, r := range sortedKeys(g.Ends) {
			for _, o := range g.Ends[r].Open {
				if x := j.d.committed(t); x == nil || o.Step > x.Step {
					s.saw(r, o)
				}
			}
		}
	}
	return s
}

// saw notes that a rank has reported a step.
func (s *steps) saw(rank uint32, x OpenStep) *stepSeen {
	s.top = max(s.top, x.Step)
	o := s.open[x.Step]
	if o == nil {
		o = &stepSeen{}
		s.open[x.Step] = o
		if len(s.open) > 64 { // ranks that never report a step must not pile them up
			s.drop(sortedKeys(s.open)[0])
		}
	}
	o.ranks.addOne(rank)
	if x.Dir != "" && (o.dir == "" || rank == 0) {
		o.dir = x.Dir
	}
	if rank == 0 {
		o.score = x.Score
	}
	return o
}

// openOf lists the steps that a rank has reported and others have not.
func (s *steps) openOf(rank uint32) (out []OpenStep) {
	for _, k := range sortedKeys(s.open) {
		if o := s.open[k]; o.ranks.has(rank) {
			out = append(out, OpenStep{Step: k, Dir: o.dir, Score: o.score})
		}
	}
	return out
}

// before is the step of which, and of those above it, reports are still needed.
func (s *steps) before() int64 {
	if len(s.open) > 0 {
		return sortedKeys(s.open)[0]
	}
	return s.top + 1
}

// stepped notes a report; a step that every rank has reported, at least one of them
// with a directory, is a committed checkpoint.
func (c *Core) stepped(j *job, s *steps, r wire.Report) {
	i, world := r.Proc.Index, uint32(1)
	if g := j.d.Gangs[i]; j.gang && g != nil {
		world = g.World
	}
	dir := r.Checkpoint
	if strings.HasPrefix(path.Base(dir), "rank-") {
		dir = path.Dir(dir)
	}
	o := s.saw(r.Proc.Rank, OpenStep{Step: r.Step, Dir: dir, Score: score(j.d.Spec.Train, r.Metrics)})
	if o.ranks.len() < int(world) {
		return
	}
	for _, k := range sortedKeys(s.open) {
		if k < r.Step {
			s.drop(k)
		}
	}
	delete(s.open, r.Step)
	if o.dir == "" {
		return
	}
	before := slices.Clone(j.d.checks(i))
	c.record(RecCheckpoint{Job: j.id, Index: i, Attempt: r.Proc.Attempt, Step: r.Step, Path: o.dir, Score: o.score, At: c.now})
	var gone []string
	for _, old := range before {
		kept := func(x RecCheckpoint) bool { return x.Path == old.Path }
		if !slices.ContainsFunc(j.d.checks(i), kept) {
			gone = append(gone, old.Path)
		}
	}
	msg := wire.Checkpoint{Try: r.Proc.Try, Step: r.Step, Path: o.dir, Delete: gone}
	for _, n := range c.where(j, i) {
		c.send(n, wire.MsgCheckpoint, msg)
	}
	if len(gone) > 0 {
		c.effect(DeleteCheckpoints{Job: j.id, Paths: gone})
	}
}

// drop gives up a step that did not become a checkpoint.
func (s *steps) drop(k int64) {
	if o := s.open[k]; o.dir != "" {
		s.dead = append(s.dead, o.dir)
	}
	delete(s.open, k)
}

// forgetSteps ends the steps of an attempt that is over. When it failed and another one
// follows, what some ranks had saved of checkpoints that were never whole is of no use to
// anybody; what an attempt leaves that nothing follows is its user's.
func (c *Core) forgetSteps(j *job, i uint32, failed bool) {
	s := j.steps[i]
	delete(j.steps, i)
	if s == nil || !failed {
		return
	}
	for _, k := range sortedKeys(s.open) {
		s.drop(k)
	}
	gone := slices.DeleteFunc(s.dead, func(p string) bool {
		return slices.ContainsFunc(j.d.checks(i), func(x RecCheckpoint) bool { return x.Path == p })
	})
	if len(gone) > 0 {
		c.effect(DeleteCheckpoints{Job: j.id, Paths: gone})
	}
}

// halfSaved says which checkpoint of a gang waits for ranks that have not reported it.
func (c *Core) halfSaved(j *job) (out []string) {
	for _, i := range sortedKeys(j.steps) {
		s, g := j.steps[i], j.d.Gangs[i]
		if g == nil || g.Over {
			continue
		}
		for _, k := range slices.Backward(sortedKeys(s.open)) {
			o := s.open[k]
			if o.dir == "" {
				continue
			}
			var missing []string
			for r := range g.World {
				if !o.ranks.has(r) {
					missing = append(missing, fmt.Sprint(r))
				}
			}
			if more := len(missing) - 8; more > 0 {
				missing = append(missing[:8], fmt.Sprintf("%d more", more))
			}
			have, ranks := "has", "rank "
			if len(missing) > 1 {
				have, ranks = "have", "ranks "
			}
			out = append(out, fmt.Sprintf("the checkpoint at step %d waits for %s%s, which %s not reported that step", k, ranks, strings.Join(missing, ", "), have))
			break
		}
	}
	return out
}

// committed is the newest checkpoint that an attempt has committed; nil = none.
func (j *jobD) committed(t wire.Try) *RecCheckpoint {
	for _, x := range slices.Backward(j.checks(t.Index)) {
		if x.Attempt == t.Attempt {
			return &x
		}
	}
	return nil
}

func (j *jobD) checks(i uint32) []RecCheckpoint {
	if c := j.Checks[i]; c != nil {
		return c.List
	}
	return nil
}

// score is what the best checkpoint is told by: higher is better.
func score(t *wire.TrainSpec, m map[string]float64) *float64 {
	if t == nil || t.Score == "" {
		return nil
	}
	v, ok := m[strings.TrimLeft(t.Score, "+-")]
	if !ok || v != v {
		return nil
	}
	if t.Score[0] == '-' {
		v = -v
	}
	return &v
}
