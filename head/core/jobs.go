package core

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

const (
	// exclusiveLease is after how much silence an agent has certainly ended exclusive
	// work by itself: its 30 s lease and the time to kill.
	exclusiveLease = 45 * second
	// detailJob is the size up to which every task of a job is remembered with times and
	// node; of bigger jobs, failures are, up to maxDetails.
	detailJob  = 4096
	maxDetails = 1000
	// defaultGrace is between SIGTERM and SIGKILL where the job does not say.
	defaultGrace = 10 * second
)

// job is the soft state of a job that is not over.
type job struct {
	id       wire.JobID
	d        *jobD
	c        *Core
	gang     bool
	need     wire.Resources // of one rank
	grace    int64
	pending  rangeSet // tasks that wait, none of them on a node
	live     int      // tries on nodes, queued and running; not gangs
	running  uint32   // those known to run; not gangs
	nodes    map[wire.NodeID]*node
	gangs    map[uint32]*gang
	limbo    []limbo
	leaving  map[uint32]leave
	steps    map[uint32]*steps
	avoid    map[wire.NodeID]string // nodes that can never run it, and why
	dur      int64                  // how long its tasks run, smoothed; 0 = not known
	slots    int                    // over all nodes, as of the last full look
	dry      bool                   // the machine had nothing to give
	tries    int                    // refused reservations in a row
	backoff  int64                  // no reservation before
	refused  string                 // why the last one was
	metrics  map[string]float64
	step     int64
	balanced int64
	seq      uint64 // changes in this life of the head
	changed  bool
	stopped  bool // Stop of the whole job has been sent
}

// limbo are tasks of exclusive work that a silent node had: they wait until its lease
// has run out.
type limbo struct {
	node  wire.NodeID
	epoch wire.Epoch
	tries rangeSet
	until int64
}

// leave says that a try was told to leave, and when it is stopped if it does not.
type leave struct {
	attempt  wire.Attempt
	why      wire.LeaveReason
	deadline int64 // 0 = never
	stopped  bool
}

func (c *Core) newJob(d *jobD) *job {
	j := &job{id: d.ID, d: d, c: c, gang: isGang(&d.Spec), need: d.Spec.Resources, grace: cmp.Or(d.Spec.Grace, defaultGrace),
		nodes: map[wire.NodeID]*node{}, gangs: map[uint32]*gang{}, leaving: map[uint32]leave{}, steps: map[uint32]*steps{}, avoid: map[wire.NodeID]string{}}
	c.jobs[d.ID] = j
	k, _ := slices.BinarySearchFunc(c.queue, j, precedence)
	c.queue = slices.Insert(c.queue, k, j)
	if d.Cancel == nil {
		if r, ok := d.ranger(); ok {
			for _, x := range r.Ranges() {
				j.requeue(x)
			}
		}
		for i := range d.Spawns {
			j.requeue(one(i))
		}
	}
	return j
}

// precedence orders the queue: priority, then age.
func precedence(a, b *job) int {
	return cmp.Or(cmp.Compare(b.d.Spec.Priority, a.d.Spec.Priority), cmp.Compare(a.id, b.id))
}

// requeue lets the tasks of r wait that are not over.
func (j *job) requeue(r wire.Range) {
	if j.d.State != 0 {
		return
	}
	for g := range j.d.Done.gaps(r) {
		j.pending.add(g)
	}
}

func (j *job) try(i uint32) wire.Try {
	return wire.Try{Task: wire.Task{Job: j.id, Index: i}, Attempt: j.d.standing(i).Attempt}
}

// touch notes that the job's info changed.
func (j *job) touch() {
	j.seq++
	j.changed = true
}

// version grows with each change, also over restarts of the head.
func (j *job) version() uint64 { return uint64(j.c.Epoch())<<40 | j.seq }

func (j *job) reserving() bool {
	for _, g := range j.gangs {
		if g.phase == gangReserving {
			return true
		}
	}
	return false
}

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
	if l, ok := j.leaving[i]; ok && l.attempt == e.Proc.Attempt {
		delete(j.leaving, i)
	}
	delete(j.steps, i)
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

// report takes one call of report(): checkpoints, the machine's opinion, the answer.
func (c *Core) report(n *node, r wire.Report) {
	j, i := c.jobs[r.Proc.Job], r.Proc.Index
	if j == nil || j.d.Done.has(i) || j.d.standing(i).Attempt != r.Proc.Attempt || !j.holds(n, i) {
		// Of an attempt that was replaced: it is not to go on.
		c.send(n, wire.MsgAdvice, wire.Advice{Seq: r.Seq, Try: r.Proc.Try, Leave: wire.LeavePreempted, Deadline: c.now + n.offset})
		return
	}
	c.stepped(j, n, r)
	if r.Proc.Rank == 0 {
		var a jobs.Advice
		if _, ok := j.d.m.(jobs.Forgetful); ok {
			a = j.d.m.Report(r)
		} else if j.d.news(r) {
			c.record(RecReport{Report: r})
			a = c.d.advice
			j.dry = false
		}
		j.metrics, j.step = r.Metrics, r.Step
		j.touch()
		if a.Leave != wire.LeaveNo {
			c.tellLeave(j, i, a.Leave, c.now+j.grace, n)
		}
		for _, o := range a.Stop {
			c.tellLeave(j, o, wire.LeavePruned, c.now+j.grace, nil)
		}
	}
	l := j.leaving[i]
	adv := wire.Advice{Seq: r.Seq, Try: r.Proc.Try}
	if l.attempt == r.Proc.Attempt {
		adv.Leave, adv.Deadline = l.why, l.deadline
		if l.deadline != 0 {
			adv.Deadline += n.offset
		}
	}
	c.send(n, wire.MsgAdvice, adv)
	c.maybeEnd(j)
}

// news reports whether a report has not been taken yet: an agent sends those again that
// it got no answer to.
func (j *jobD) news(r wire.Report) bool {
	last := j.Reported[r.Proc.Index]
	return r.Proc.Attempt != last.Attempt || r.Time > last.Time
}

// holds reports whether the node has the newest attempt of a task.
func (j *job) holds(n *node, i uint32) bool {
	if j.gang {
		return n.parts[wire.Task{Job: j.id, Index: i}] != nil
	}
	s := n.shares[j.id]
	return s != nil && s.tries.has(i)
}

// tellLeave tells a task's newest attempt to leave. but is a node that learns it by the
// answer to its report.
func (c *Core) tellLeave(j *job, i uint32, why wire.LeaveReason, deadline int64, but *node) {
	t := j.try(i)
	if l, ok := j.leaving[i]; ok && l.attempt == t.Attempt {
		return
	}
	on := c.where(j, i)
	if len(on) == 0 || j.d.Done.has(i) {
		return
	}
	c.record(RecTold{Job: j.id, Index: i, Attempt: t.Attempt, Leave: why})
	j.leaving[i] = leave{attempt: t.Attempt, why: why, deadline: deadline}
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

// where lists the nodes that have a task's newest attempt.
func (c *Core) where(j *job, i uint32) (out []*node) {
	if j.gang {
		if g := j.gangs[i]; g != nil {
			for _, p := range g.nodes {
				if n := c.nodes[p.Node]; n != nil && n.parts[wire.Task{Job: j.id, Index: i}] != nil {
					out = append(out, n)
				}
			}
		}
		return out
	}
	for _, id := range sortedKeys(j.nodes) {
		if n := j.nodes[id]; n.shares[j.id].tries.has(i) {
			return []*node{n}
		}
	}
	return nil
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

// watchLimbo runs exclusive work again once its node's lease is certainly over.
func (c *Core) watchLimbo() {
	for _, j := range slices.Clone(c.queue) {
		for k := 0; k < len(j.limbo); {
			l := j.limbo[k]
			if c.now < l.until {
				k++
				continue
			}
			j.limbo = slices.Delete(j.limbo, k, k+1)
			if j.d.Cancel == nil {
				for r := range l.tries.all() {
					j.requeue(r)
				}
			}
			c.full = true
			c.maybeEnd(j)
		}
	}
}

// steps gathers, per step, which ranks of a task have reported it.
type steps struct {
	attempt wire.Attempt
	open    map[int64]*stepSeen
}

type stepSeen struct {
	ranks rangeSet
	dir   string
	score *float64
}

// stepped notes a report; a step that every rank has reported, at least one of them
// with a directory, is a committed checkpoint.
func (c *Core) stepped(j *job, n *node, r wire.Report) {
	i, world := r.Proc.Index, uint32(1)
	if g := j.d.Gangs[i]; j.gang && g != nil {
		world = g.World
	}
	s := j.steps[i]
	if s == nil || s.attempt != r.Proc.Attempt {
		s = &steps{attempt: r.Proc.Attempt, open: map[int64]*stepSeen{}}
		j.steps[i] = s
	}
	o := s.open[r.Step]
	if o == nil {
		o = &stepSeen{}
		s.open[r.Step] = o
		if len(s.open) > 64 { // ranks that never report a step must not pile them up
			delete(s.open, sortedKeys(s.open)[0])
		}
	}
	o.ranks.addOne(r.Proc.Rank)
	if r.Checkpoint != "" && (o.dir == "" || r.Proc.Rank == 0) {
		o.dir = r.Checkpoint
		if strings.HasPrefix(path.Base(o.dir), "rank-") {
			o.dir = path.Dir(o.dir)
		}
	}
	if r.Proc.Rank == 0 {
		o.score = score(j.d.Spec.Train, r.Metrics)
	}
	if o.ranks.len() < int(world) {
		return
	}
	for _, k := range sortedKeys(s.open) {
		if k <= r.Step {
			delete(s.open, k)
		}
	}
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

// cancelJob stops everything of a job; it is over when nothing of it is left.
func (c *Core) cancelJob(j *job, cause string, reason wire.Reason, grace int64) (stopped uint32) {
	if grace >= 0 {
		j.grace = grace
	}
	if j.d.Cancel == nil {
		c.record(RecJobCancel{Job: j.id, Cause: cause, At: c.now})
	}
	j.pending, j.limbo = rangeSet{}, nil
	for _, i := range sortedKeys(j.gangs) {
		if g := j.gangs[i]; g.phase == gangReserving {
			c.releaseGang(j, g)
		}
	}
	for _, n := range c.order {
		parts := 0
		for t := range n.parts {
			if t.Job == j.id {
				parts++
			}
		}
		if n.shares[j.id] != nil || parts > 0 {
			c.send(n, wire.MsgStop, wire.Stop{Job: j.id, All: true, Reason: reason, Grace: j.grace})
		}
	}
	stopped = uint32(j.live + len(j.gangs))
	j.touch()
	c.maybeEnd(j)
	return stopped
}

// cancelTask stops one task.
func (c *Core) cancelTask(j *job, i uint32, grace int64) uint32 {
	if grace < 0 {
		grace = j.grace
	}
	c.record(RecTaskCancel{Job: j.id, Index: i, At: c.now})
	if g := j.gangs[i]; g != nil && g.phase == gangReserving {
		c.releaseGang(j, g)
	}
	for k := range j.limbo {
		if l := &j.limbo[k]; l.tries.has(i) {
			l.tries.dropOne(i)
			j.pending.addOne(i)
		}
	}
	if j.pending.has(i) {
		c.endWaiting(j, i)
		return 1
	}
	for _, n := range c.where(j, i) {
		c.send(n, wire.MsgStop, wire.Stop{Job: j.id, Tries: []wire.Try{j.try(i)}, Reason: wire.ReasonCancelled, Grace: grace})
	}
	j.touch()
	return 1
}

// maybeEnd ends a job that is cancelled and has nothing left, and follows one that its
// machine has ended.
func (c *Core) maybeEnd(j *job) {
	if c.jobs[j.id] != j {
		return
	}
	if j.d.State == 0 && j.d.Cancel != nil && j.live == 0 && len(j.gangs) == 0 && len(j.limbo) == 0 && !c.recovering {
		c.record(RecJobEnd{Job: j.id, State: wire.StateCancelled, Code: 130, Cause: cmp.Or(j.d.Cancel.Cause, "cancelled"), At: c.now})
	}
	if j.d.State != 0 {
		c.jobEnded(j)
	}
}

// jobEnded takes a job that is over off the queue.
func (c *Core) jobEnded(j *job) {
	if c.jobs[j.id] != j {
		return
	}
	for _, n := range c.order {
		parts := 0
		for _, t := range sortedTasks(n.parts) {
			if t.Job == j.id {
				delete(n.parts, t)
				parts++
			}
		}
		s := n.shares[j.id]
		if s != nil {
			delete(n.shares, j.id)
		}
		if parts > 0 || s != nil && s.tries.len() > 0 {
			// What still runs has nothing to run for: the job failed, or has its answer.
			c.send(n, wire.MsgStop, wire.Stop{Job: j.id, All: true, Reason: wire.ReasonCancelled, Grace: j.grace})
		}
	}
	delete(c.jobs, j.id)
	c.queue = slices.DeleteFunc(c.queue, func(x *job) bool { return x == j })
	if c.hold == j {
		c.dropHold()
	}
	c.lastWords(j)
	c.effect(JobChanged{Job: j.id, Ended: true})
	c.wantLogs(j.d)
	c.full = true
}

// wantLogs asks the shell for the rest of an ended job's output.
func (c *Core) wantLogs(d *jobD) {
	var parts []LogPart
	for _, p := range d.Logs {
		if n := c.d.st.Nodes[p.Node]; n != nil && n.Epoch == p.Epoch && n.State != nodeGone {
			parts = append(parts, p)
		}
	}
	c.effect(JobLogsWanted{Job: d.ID, Parts: parts})
}

// ended lists the jobs that are over and whose output is not all there.
func (c *Core) ended() (out []*jobD) {
	for k := len(c.d.st.Ended) - 1; k >= 0; k-- {
		if d := c.d.st.Jobs[c.d.st.Ended[k]]; d != nil && !d.LogsDone {
			out = append(out, d)
		}
	}
	slices.Reverse(out)
	return out
}

// logsLost: output of a node that is gone will not come any more.
func (c *Core) logsLost(d *jobD, id wire.NodeID, epoch wire.Epoch) {
	if slices.ContainsFunc(d.Logs, func(p LogPart) bool { return p.Node == id && p.Epoch == epoch }) {
		c.wantLogs(d)
	}
}

func (c *Core) logsDone(id wire.JobID) {
	d := c.d.st.Jobs[id]
	if d == nil || d.State == 0 || d.LogsDone {
		return
	}
	c.record(RecLogsDone{Job: id})
	for _, n := range c.order {
		c.send(n, wire.MsgForget, wire.Forget{Job: id})
		delete(n.known, id)
	}
	c.effect(JobChanged{Job: id})
	for _, w := range c.wait {
		if w.job == id {
			w.due = true
		}
	}
}

// tellJob gives a node what it needs to run tasks of a job, once per connection.
func (c *Core) tellJob(n *node, j *job) {
	if n.known[j.id] {
		return
	}
	n.known[j.id] = true
	m := wire.Job{Job: j.id, Spec: j.d.Spec, Record: c.cfg.RecordDir + "/" + strconv.FormatUint(uint64(j.id), 10)}
	if a := m.Spec.Array; a != nil && len(a.Lines) > 0 {
		// Each item carries its line; the list may be longer than a frame. One line stays
		// to say that there are lines.
		m.Spec.Array = &wire.ArraySpec{Ranges: a.Ranges, Lines: a.Lines[:1]}
	}
	if p := c.pools[n.pool]; p != nil {
		m.PoolEnv, m.Setup, m.Python, m.Container = p.spec.Env, p.spec.Setup, p.spec.Python, p.spec.Container
	}
	c.send(n, wire.MsgJob, m)
}
