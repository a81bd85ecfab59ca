package core

import (
	"cmp"
	"slices"
	"strconv"

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
	// maxFinal bounds the jobs that are over whose newest report is still shown.
	maxFinal = 1000
	// defaultGrace is between SIGTERM and SIGKILL where the job does not say.
	defaultGrace = 10 * second
)

// job is the soft state of a job that is not over.
type job struct {
	id      wire.JobID
	d       *jobD
	c       *Core
	gang    bool
	need    wire.Resources // of one rank
	grace   int64
	pending rangeSet // tasks that wait, none of them on a node
	live    int      // tries on nodes, queued and running; not gangs
	running uint32   // those known to run; not gangs
	nodes   map[wire.NodeID]*node
	gangs   map[uint32]*gang
	limbo   []limbo
	leaving map[uint32]leave
	heard   map[uint32]heard // when tasks last reported
	learned
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

// last is what the newest report of a job said.
type last struct {
	metrics map[string]float64
	step    int64
}

// limbo are tasks of exclusive work that a silent node had: they wait until its lease
// has run out.
type limbo struct {
	node  wire.NodeID
	epoch wire.Epoch
	tries rangeSet
	until int64
}

func (c *Core) newJob(d *jobD) *job {
	j := &job{id: d.ID, d: d, c: c, gang: isGang(&d.Spec), need: d.Spec.Resources, grace: cmp.Or(d.Spec.Grace, defaultGrace),
		nodes: map[wire.NodeID]*node{}, gangs: map[uint32]*gang{}, leaving: map[uint32]leave{}, heard: map[uint32]heard{}, steps: map[uint32]*steps{}, avoid: map[wire.NodeID]string{}}
	j.learned = d.Learned
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

// holds reports whether the node has the newest attempt of a task.
func (j *job) holds(n *node, i uint32) bool {
	if j.gang {
		return n.parts[wire.Task{Job: j.id, Index: i}] != nil
	}
	s := n.shares[j.id]
	return s != nil && s.tries.has(i)
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
	if len(c.final) >= maxFinal {
		clear(c.final)
	}
	if j.metrics != nil || j.step != 0 {
		c.final[j.id] = last{j.metrics, j.step}
	}
	delete(c.jobs, j.id)
	c.queue = slices.DeleteFunc(c.queue, func(x *job) bool { return x == j })
	if c.hold != nil && c.hold.job == j {
		c.dropHold(c.hold)
	}
	c.lastWords(j)
	c.effect(JobChanged{Job: j.id, Ended: true})
	c.wantLogs(j.d)
	c.full = true
}

// wantLogs asks the shell for the rest of an ended job's output, of the nodes that are there:
// for a lost one nobody can say when it is back.
func (c *Core) wantLogs(d *jobD) {
	var parts []LogPart
	for _, p := range d.Logs {
		if n := c.d.st.Nodes[p.Node]; n != nil && n.Epoch == p.Epoch && n.State == nodeUp {
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

// logsLost: output of a node that is gone, or lost, is not waited for any more.
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
