package core

import (
	"cmp"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// watchEvery bounds how often one watcher is told of changes.
const watchEvery = 100 * millisecond

// watcher is a request that is answered again on changes.
type watcher struct {
	id   uint64
	job  wire.JobID
	told int64
	due  bool
}

func (c *Core) answer(id uint64, resp any) { c.effect(Reply{ID: id, Resp: resp}) }
func (c *Core) fail(id uint64, err error)  { c.effect(Reply{ID: id, Err: err}) }
func (c *Core) noJob(id uint64, j wire.JobID) {
	c.fail(id, errs.New(errs.NotFound, "there is no job %d in cluster %s", j, c.cfg.Cluster).Hint("`launcher jobs --all` lists them"))
}

// client serves one request.
func (c *Core) client(ev ClientReq) {
	switch r := ev.Req.(type) {
	case wire.InfoRequest:
		c.answer(ev.ID, c.info())
	case wire.Submit:
		c.submitJob(ev.ID, r)
	case wire.JobsRequest:
		out := []wire.JobInfo{}
		for _, id := range sortedKeys(c.d.st.Jobs) {
			if d := c.d.st.Jobs[id]; !d.Spec.Hidden && (r.All || d.State == 0) {
				out = append(out, c.jobInfo(d))
			}
		}
		c.answer(ev.ID, out)
	case wire.Watch:
		c.watch(ev.ID, r)
	case wire.TasksRequest:
		c.tasks(ev.ID, r)
	case wire.Cancel:
		c.cancel(ev.ID, r)
	case wire.NodesRequest:
		c.answer(ev.ID, c.nodeInfos())
	case wire.PoolsRequest:
		c.answer(ev.ID, c.poolInfos())
	case wire.Why:
		c.why(ev.ID, r)
	case wire.DrainRequest:
		c.drain(ev.ID, r)
	case wire.Down:
		c.downRequest(ev.ID, r)
	case wire.TrialsRequest:
		if t, ok := c.Table(r.Job); ok {
			c.answer(ev.ID, t)
		} else if c.d.st.Jobs[r.Job] == nil {
			c.noJob(ev.ID, r.Job)
		} else {
			c.fail(ev.ID, errs.New(errs.Invalid, "job %d is no sweep", r.Job))
		}
	case wire.Update:
		c.update(ev.ID, r)
	default:
		c.fail(ev.ID, errs.New(errs.Version, "the head does not know requests of type %T", r))
	}
}

// submitJob accepts a job, or says why it cannot ever run.
func (c *Core) submitJob(id uint64, r wire.Submit) {
	if old, ok := c.d.st.Tokens[r.Token]; ok && r.Token != "" {
		c.answer(id, wire.Submitted{Job: old})
		return
	}
	s := r.Spec
	s.Ranks = max(s.Ranks, 1)
	if c.d.st.Down != nil {
		c.fail(id, errs.New(errs.Unavailable, "cluster %s is going down and takes no new jobs", c.cfg.Cluster))
		return
	}
	if s.Nodes > 0 && s.RanksPerNode > 0 {
		s.Ranks = s.Nodes * s.RanksPerNode
	}
	if s.Pool != "" && c.pools[s.Pool] == nil {
		c.fail(id, errs.New(errs.NotFound, "there is no pool %q in cluster %s", s.Pool, c.cfg.Cluster).Hint("its pools are %s", strings.Join(sortedKeys(c.pools), ", ")))
		return
	}
	if d := c.d.st.Nodes[s.Node]; s.Node != "" && (d == nil || d.State == nodeGone) {
		c.fail(id, errs.New(errs.NotFound, "there is no node %s in cluster %s", s.Node, c.cfg.Cluster).Hint("`launcher nodes` lists them"))
		return
	}
	if _, err := c.d.machine(s, nil); err != nil {
		c.fail(id, err)
		return
	}
	rec := RecJob{Job: c.d.st.NextJob + 1, Token: r.Token, Spec: s, At: c.now}
	c.record(rec)
	d := c.d.st.Jobs[rec.Job]
	j := c.newJob(d)
	j.touch()
	if d.State != 0 { // nothing to do at all
		c.jobEnded(j)
	} else {
		c.checkPossible(j)
	}
	c.full = true
	c.answer(id, wire.Submitted{Job: rec.Job})
}

func (c *Core) watch(id uint64, r wire.Watch) {
	d := c.d.st.Jobs[r.Job]
	if d == nil {
		c.noJob(id, r.Job)
		return
	}
	w := &watcher{id: id, job: r.Job, due: true}
	if j := c.jobs[r.Job]; j != nil && j.version() <= r.Version {
		w.due = false
	}
	c.wait[id] = w
}

// tellWatchers answers those whose job changed, each at most so often.
func (c *Core) tellWatchers() {
	for _, j := range c.queue {
		if !j.changed {
			continue
		}
		j.changed = false
		c.effect(JobChanged{Job: j.id})
		for _, w := range c.wait {
			w.due = w.due || w.job == j.id
		}
	}
	if len(c.wait) == 0 {
		return
	}
	for _, id := range sortedKeys(c.wait) {
		w := c.wait[id]
		d := c.d.st.Jobs[w.job]
		switch {
		case d == nil:
			c.fail(id, errs.New(errs.NotFound, "job %d has been forgotten", w.job))
			delete(c.wait, id)
		case d.State != 0:
			// The last answer.
			c.answer(id, c.jobInfo(d))
			delete(c.wait, id)
		case w.due && c.now-w.told >= watchEvery:
			w.due, w.told = false, c.now
			c.effect(Reply{ID: id, Resp: c.jobInfo(d), More: true})
		}
	}
}

// lastWords lets the watchers of a job that is over be answered in this Step.
func (c *Core) lastWords(j *job) {
	for _, w := range c.wait {
		if w.job == j.id {
			w.due = true
		}
	}
}

func (c *Core) cancel(id uint64, r wire.Cancel) {
	d := c.d.st.Jobs[r.Job]
	if d == nil {
		c.noJob(id, r.Job)
		return
	}
	j := c.jobs[r.Job]
	if j == nil {
		c.answer(id, wire.Cancelled{})
		return
	}
	if r.Task == nil {
		c.answer(id, wire.Cancelled{Stopped: c.cancelJob(j, "cancelled", wire.ReasonCancelled, r.Grace)})
		return
	}
	if n, _ := d.total(); d.Done.has(*r.Task) {
		c.answer(id, wire.Cancelled{})
		return
	} else if !j.knows(*r.Task) {
		c.fail(id, errs.New(errs.NotFound, "job %d has no task %d, it has %d tasks", r.Job, *r.Task, n))
		return
	}
	c.answer(id, wire.Cancelled{Stopped: c.cancelTask(j, *r.Task, r.Grace)})
}

// knows reports whether an index is a task of the job that is not over.
func (j *job) knows(i uint32) bool {
	if j.pending.has(i) || j.gangs[i] != nil || len(j.c.where(j, i)) > 0 {
		return true
	}
	return slices.ContainsFunc(j.limbo, func(l limbo) bool { return l.tries.has(i) })
}

// Job gives a job's info, as in answers to clients.
func (c *Core) Job(id wire.JobID) (wire.JobInfo, bool) {
	d := c.d.st.Jobs[id]
	if d == nil {
		return wire.JobInfo{}, false
	}
	return c.jobInfo(d), true
}

func (c *Core) jobInfo(d *jobD) wire.JobInfo {
	total, _ := d.total()
	x := wire.JobInfo{ID: d.ID, Name: d.Spec.Name, Kind: d.Spec.Kind, State: d.State, Tasks: total, Done: d.Good, Failed: d.Bad, Cancelled: d.Cancelled,
		Lost: d.Losses, Restarts: d.Restarts, ExitCode: d.Code, Cause: d.Cause, Submitted: d.Submitted, Started: d.Started, Ended: d.EndedAt,
		Command: d.Spec.Command, Dir: d.Spec.Dir, LogsDone: d.LogsDone, Version: 1 << 63}
	if j := c.jobs[d.ID]; j != nil {
		x.Version = j.version()
		x.Running = j.running
		for _, g := range j.gangs {
			if g.phase == gangRunning {
				x.Running++
				if g.started != 0 && (x.Started == 0 || g.started < x.Started) {
					x.Started = g.started
				}
			}
		}
		for _, n := range j.nodes {
			for _, at := range n.shares[j.id].running {
				if x.Started == 0 || at < x.Started {
					x.Started = at
				}
			}
		}
		if over := d.Good + d.Bad + d.Cancelled + x.Running; over < total {
			x.Waiting = total - over
		}
		switch {
		case d.Cancel != nil:
			x.State = wire.StateStopping
		case x.Running > 0 || x.Started != 0:
			x.State = wire.StateRunning
		default:
			x.State = wire.StateWaiting
		}
		x.Metrics, x.Step = j.metrics, j.step
	}
	if t, ok := c.table(d); ok {
		x.Best = best(t)
	}
	return x
}

func best(t wire.TrialTable) *wire.Trial {
	var b *wire.Trial
	for i := range t.Trials {
		x := &t.Trials[i]
		if x.Best == nil || b != nil && (t.Maximize && *x.Best <= *b.Best || !t.Maximize && *x.Best >= *b.Best) {
			continue
		}
		b = x
	}
	return b
}

// Table gives the table of a job's trials; false when it has none.
func (c *Core) Table(id wire.JobID) (wire.TrialTable, bool) {
	d := c.d.st.Jobs[id]
	if d == nil {
		return wire.TrialTable{}, false
	}
	t, ok := c.table(d)
	if ok {
		t.Job = c.jobInfo(d)
	}
	return t, ok
}

func (c *Core) table(d *jobD) (wire.TrialTable, bool) {
	m, ok := d.m.(interface{ Table() wire.TrialTable })
	if !ok {
		return wire.TrialTable{}, false
	}
	t := m.Table()
	for k := range t.Trials {
		x := c.taskInfo(d, t.Trials[k].Index)
		t.Trials[k].State, t.Trials[k].Code, t.Trials[k].Started, t.Trials[k].Ended = x.State, x.ExitCode, x.Started, x.Ended
		if f, ok := d.Done.get(t.Trials[k].Index); ok && f.Pruned {
			t.Trials[k].Pruned = true
		}
	}
	return t, true
}

// tasks lists tasks of a job, in the order of their indices.
func (c *Core) tasks(id uint64, r wire.TasksRequest) {
	d := c.d.st.Jobs[r.Job]
	if d == nil {
		c.noJob(id, r.Job)
		return
	}
	limit := cmp.Or(r.Limit, 1000)
	skip := r.Offset
	out := []wire.TaskInfo{}
	for i := range d.indices() {
		if r.Index != nil && *r.Index != i {
			continue
		}
		if len(r.States) > 0 && !slices.Contains(r.States, c.taskState(d, i)) {
			continue
		}
		if skip > 0 {
			skip--
			continue
		}
		out = append(out, c.taskInfo(d, i))
		if len(out) == limit {
			break
		}
	}
	if r.Index != nil && len(out) == 0 {
		c.fail(id, errs.New(errs.NotFound, "job %d has no task %d", r.Job, *r.Index))
		return
	}
	c.answer(id, out)
}

// indices yields the indices of all tasks known so far.
func (d *jobD) indices() func(func(uint32) bool) {
	return func(yield func(uint32) bool) {
		switch {
		case d.Spec.Array != nil:
			for _, r := range d.Spec.Array.Ranges {
				for i := r.From; i < r.To; i++ {
					if !yield(i) {
						return
					}
				}
			}
		case len(d.Spawns) > 0 || d.Spec.Kind == wire.KindSweep:
			for _, i := range sortedKeys(d.Spawns) {
				if !yield(i) {
					return
				}
			}
		default:
			yield(0)
		}
	}
}

func (c *Core) taskState(d *jobD, i uint32) wire.State {
	if f, ok := d.Done.get(i); ok {
		return f.State
	}
	j := c.jobs[d.ID]
	if j == nil {
		return wire.StateCancelled // its job ended without it
	}
	if g := j.gangs[i]; g != nil && g.phase == gangRunning {
		return wire.StateRunning
	}
	for _, n := range j.nodes {
		if _, ok := n.shares[j.id].running[i]; ok {
			return wire.StateRunning
		}
	}
	return wire.StateWaiting
}

func (c *Core) taskInfo(d *jobD, i uint32) wire.TaskInfo {
	x := wire.TaskInfo{Task: wire.Task{Job: d.ID, Index: i}, Attempt: d.standing(i).Attempt, State: c.taskState(d, i)}
	if e := d.Details[i]; e != nil {
		x.Node, x.ExitCode, x.Reason, x.Started, x.Ended = e.Node, e.Code, e.Reason, e.Started, e.Ended
		if e.Code != 0 {
			x.Cause = d.cause(e)
		}
		if x.State.Terminal() {
			x.Attempt = e.Attempt
		}
	}
	if f, ok := d.Done.get(i); ok {
		x.ExitCode = f.Code
	}
	if a := d.Spec.Array; a != nil && int(i) < len(a.Lines) {
		x.Line = a.Lines[i]
	}
	if s := d.Spawns[i]; s != nil {
		x.Params = string(s.Params)
	}
	if g := d.Gangs[i]; g != nil {
		x.Attempt = g.Attempt
		for _, p := range g.Nodes {
			for r := p.First; r < p.First+p.Count; r++ {
				k := wire.RankInfo{Rank: r, Node: p.Node, State: wire.StateRunning}
				if e := g.Ends[r]; e != nil {
					k.Code, k.State = e.Code, wire.StateDone
					if e.Lost {
						k.State = wire.StateLost
					} else if e.Code != 0 {
						k.State = wire.StateFailed
					}
				}
				x.Ranks = append(x.Ranks, k)
			}
		}
		if len(g.Nodes) > 0 {
			x.Node = g.Nodes[0].Node
		}
	}
	if j := c.jobs[d.ID]; j != nil && x.State == wire.StateRunning {
		x.Ended, x.ExitCode, x.Cause, x.Reason = 0, 0, "", 0
		if g := j.gangs[i]; g != nil {
			x.Started = g.started
		}
		for _, n := range j.nodes {
			if at, ok := n.shares[j.id].running[i]; ok {
				x.Node, x.Started = n.id, at
			}
		}
	}
	return x
}

func (c *Core) info() wire.ClusterInfo {
	x := wire.ClusterInfo{Name: c.cfg.Cluster, SpecPath: c.d.st.SpecPath, SpecText: c.d.st.SpecText, Version: c.cfg.Version, HeadEpoch: c.Epoch(),
		HeadPID: c.cfg.HeadPID, HeadHost: c.cfg.HeadHost, Started: c.d.st.Created, Recovering: c.recovering, Jobs: map[string]int{}}
	x.Pools, x.Nodes = c.poolInfos(), c.nodeInfos()
	for _, d := range c.d.st.Jobs {
		if d.Spec.Hidden {
			continue
		}
		if d.State != 0 {
			x.Jobs[d.State.String()]++
		} else {
			x.Jobs[c.jobInfo(d).State.String()]++
		}
	}
	for _, n := range x.Nodes {
		if n.State == "up" {
			x.Total, x.Free = x.Total.Add(n.Total, 1), x.Free.Add(n.Free, 1)
		}
	}
	return x
}

func (c *Core) nodeInfos() []wire.NodeInfo {
	out := []wire.NodeInfo{}
	for _, id := range sortedKeys(c.d.st.Nodes) {
		d := c.d.st.Nodes[id]
		x := wire.NodeInfo{ID: id, Epoch: d.Epoch, Pool: d.Pool, Host: d.Host, Total: d.Total, Since: d.Since, Why: d.Cause}
		switch d.State {
		case nodeAsked:
			x.State = "joining"
			if p := c.pools[d.Pool]; p != nil {
				x.Why = p.why
			}
		case nodeLost:
			x.State = "lost"
		case nodeGone:
			x.State = "gone"
		}
		if n := c.nodes[id]; n != nil {
			h := &n.hello
			x.Addr, x.Restarts, x.PID, x.Python, x.Clock, x.Deadline = h.Addr, h.Restarts, h.PID, h.Python, n.offset, h.Deadline
			x.Free, x.Running, x.Queued, x.Load1, x.MemFree, x.GPUs, x.Seen = n.beat.Free, n.beat.Running, n.beat.Queued, n.beat.Load1, n.beat.MemFree, n.beat.GPUs, n.seen
			if n.greeted {
				x.Total = n.total
			}
			switch {
			case d.Drain != nil:
				x.State = "draining"
			case !n.greeted, n.suspect, !n.conn:
				x.State = "suspect"
			default:
				x.State = "up"
			}
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b wire.NodeInfo) int { return compareIDs(a.ID, b.ID) })
	return out
}

func (c *Core) poolInfos() []wire.PoolInfo {
	out := []wire.PoolInfo{}
	for _, p := range c.sortedPools() {
		x := wire.PoolInfo{Name: p.spec.Name, Backend: p.spec.Backend, Min: p.spec.Min, Max: p.spec.Max, Failed: p.failures, Wanted: p.wanted, Why: p.why}
		x.Up, x.Pending, _, _ = c.standing(p)
		out = append(out, x)
	}
	return out
}
