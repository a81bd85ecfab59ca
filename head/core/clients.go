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

func (c *Core) fail(id uint64, err error) { c.effect(Reply{ID: id, Err: err}) }

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
	case wire.NameRequest:
		c.nameRequest(ev.ID, r)
	case wire.GroupRequest:
		c.groupRequest(ev.ID, r)
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
	on := c.runningOf(r.Job)
	for i := range d.indices() {
		if r.Index != nil && *r.Index != i {
			continue
		}
		if len(r.States) > 0 && !slices.Contains(r.States, c.taskState(d, i, on)) {
			continue
		}
		if skip > 0 {
			skip--
			continue
		}
		out = append(out, c.taskInfo(d, i, on))
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
