package core

import (
	"cmp"
	"slices"
	"strings"

	"launcher/wire"
)

// Job gives a job's info, as in answers to clients.
func (c *Core) Job(id wire.JobID) (wire.JobInfo, bool) {
	d := c.d.st.Jobs[id]
	if d == nil {
		return wire.JobInfo{}, false
	}
	return c.jobInfo(d), true
}

// Spec gives what a job is.
func (c *Core) Spec(id wire.JobID) (wire.JobSpec, bool) {
	d := c.d.st.Jobs[id]
	if d == nil {
		return wire.JobSpec{}, false
	}
	return d.Spec, true
}

// Over reports whether a task is over, and, where it is known still, by which attempt.
func (c *Core) Over(t wire.Task) (a wire.Attempt, known, over bool) {
	d := c.d.st.Jobs[t.Job]
	if d == nil {
		return 0, false, true
	}
	if x := d.Details[t.Index]; x != nil {
		a, known = x.Attempt, true
	}
	return a, known, d.State.Terminal() || d.Done.has(t.Index)
}

func (c *Core) jobInfo(d *jobD) wire.JobInfo {
	total, _ := d.total()
	x := wire.JobInfo{ID: d.ID, Name: d.Spec.Name, Kind: d.Spec.Kind, State: d.State, Tasks: total, Done: d.Good, Failed: d.Bad, Cancelled: d.Cancelled,
		Lost: d.Losses, Restarts: d.Restarts, ExitCode: d.Code, Cause: d.Cause, Submitted: d.Submitted, Started: d.Started, Ended: d.EndedAt,
		Command: d.Spec.Command, Dir: d.Spec.Dir, LogsDone: d.LogsDone, Version: 1 << 63}
	if len(d.Spec.Outputs) > 0 && d.Spec.DirSum != "" {
		x.Outputs = &wire.Outputs{} // what came of them the shell knows
	}
	if l, ok := c.final[d.ID]; ok {
		x.Metrics, x.Step = l.metrics, l.step
	}
	if j := c.jobs[d.ID]; j != nil {
		x.Version = j.version()
		x.Uses = c.jobUses(j)
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
		x.Held = strings.Join(c.heldOutput(d.ID), "; ")
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
	on := c.runningOf(d.ID)
	for k := range t.Trials {
		x := c.taskInfo(d, t.Trials[k].Index, on)
		t.Trials[k].State, t.Trials[k].Code, t.Trials[k].Started, t.Trials[k].Ended = x.State, x.ExitCode, x.Started, x.Ended
		if f, ok := d.Done.get(t.Trials[k].Index); ok && f.Pruned {
			t.Trials[k].Pruned = true
		}
	}
	return t, true
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

func (c *Core) taskState(d *jobD, i uint32, on map[uint32]place) wire.State {
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
	if _, ok := on[i]; ok {
		return wire.StateRunning
	}
	return wire.StateWaiting
}

// place is where a single try runs, and since when.
type place struct {
	node wire.NodeID
	at   int64
}

// runningOf finds the tries of a job that are known to run; not gangs.
func (c *Core) runningOf(id wire.JobID) map[uint32]place {
	j := c.jobs[id]
	if j == nil {
		return nil
	}
	out := make(map[uint32]place, j.running)
	for nid, n := range j.nodes {
		for i, at := range n.shares[id].running {
			out[i] = place{nid, at}
		}
	}
	return out
}

func (c *Core) taskInfo(d *jobD, i uint32, on map[uint32]place) wire.TaskInfo {
	x := wire.TaskInfo{Task: wire.Task{Job: d.ID, Index: i}, Attempt: d.standing(i).Attempt, State: c.taskState(d, i, on)}
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
		if p, ok := on[i]; ok {
			x.Node, x.Started = p.node, p.at
		}
	}
	return x
}

func (c *Core) info() wire.ClusterInfo {
	x := wire.ClusterInfo{Name: c.cfg.Cluster, SpecPath: c.d.st.SpecPath, SpecText: c.d.st.SpecText, Version: c.cfg.Version, HeadEpoch: c.Epoch(),
		HeadPID: c.cfg.HeadPID, HeadHost: c.cfg.HeadHost, Started: c.d.st.Created, Recovering: c.recovering, Jobs: map[string]int{}, Uses: c.allUses()}
	x.Pools, x.Nodes = c.poolInfos(), c.nodeInfos()
	c.seatInfo(&x)
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
		x := wire.NodeInfo{ID: id, Epoch: d.Epoch, Pool: d.Pool, Host: d.Host, Total: d.Total, Since: d.Since, Why: d.Cause, Number: d.Number}
		switch d.State {
		case nodeAsked:
			x.State = "joining"
			if p := c.pools[d.Pool]; p != nil {
				x.Why = p.whyNot(id)
			}
		case nodeLost:
			x.State = "lost"
		case nodeGone:
			x.State = "gone"
		}
		if n := c.nodes[id]; n != nil {
			h := &n.hello
			x.Addr, x.Restarts, x.PID, x.Python, x.Clock, x.Deadline = h.Addr, h.Restarts, h.PID, h.Python, n.offset, n.ends/second
			x.Topology, x.Rate, x.Taken = h.Topology, n.beat.Rate, n.others()
			x.Route = strings.Join(append([]string{h.Route}, n.beat.Relays...), ", ")
			x.Free, x.Running, x.Queued, x.Load1, x.MemFree, x.GPUs, x.Seen = n.beat.Free, n.beat.Running, n.beat.Queued, n.beat.Load1, n.beat.MemFree, n.beat.GPUs, n.seen
			if n.greeted {
				x.Total = n.total
			}
			x.Why = cmp.Or(n.beat.Why, x.Why)
			if n.suspect {
				x.Why = cmp.Or(n.said, x.Why)
			}
			for _, h := range n.beat.Held {
				x.Why = h.Why
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
		x := wire.PoolInfo{Name: p.spec.Name, Backend: p.spec.Backend, Min: p.spec.Min, Max: p.spec.Max, Failed: p.failures, Wanted: p.wanted, Why: cmp.Or(p.why, p.over), Final: p.final, Apart: p.spec.Apart}
		x.Up, x.Pending, _, _ = c.standing(p)
		if p.named() {
			x.Failures = c.failing(p)
			x.Failed, x.Pending = len(x.Failures), c.coming(p, x.Pending, x.Failures)
		}
		for _, n := range c.order {
			if n.pool == p.spec.Name && n.greeted {
				x.Why = cmp.Or(x.Why, n.beat.Why)
			}
		}
		out = append(out, x)
	}
	return out
}
