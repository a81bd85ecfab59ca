package core

import (
	"launcher/internal/errs"
	"launcher/wire"
)

// Check compares the soft state with itself and with Durable: every task of a job that
// is not over is in exactly one place, and counts agree. It is for tests and the
// simulator; its cost grows with everything there is.
func (c *Core) Check() error {
	bad := func(format string, args ...any) error { return errs.New(errs.Internal, format, args...) }
	for _, j := range c.queue {
		if j.d.State != 0 {
			return bad("job %d is over and queued", j.id)
		}
		live, running := 0, 0
		for id, n := range j.nodes {
			s := n.shares[j.id]
			if s == nil || c.nodes[id] != n {
				return bad("job %d believes to have a share of %s", j.id, id)
			}
			live += s.tries.len()
			running += len(s.running)
			for r := range s.tries.all() {
				for i := r.From; i < r.To; i++ {
					if j.pending.has(i) {
						return bad("task %d.%d waits and is on %s", j.id, i, id)
					}
					if j.d.Done.has(i) {
						return bad("task %d.%d is over and on %s", j.id, i, id)
					}
				}
			}
			for i := range s.running {
				if !s.tries.has(i) {
					return bad("task %d.%d runs on %s without being there", j.id, i, id)
				}
			}
		}
		if live != j.live || running != int(j.running) {
			return bad("job %d counts %d tries, %d running; there are %d, %d", j.id, j.live, j.running, live, running)
		}
		limbo := 0
		for _, l := range j.limbo {
			limbo += l.tries.len()
		}
		if r, ok := j.d.ranger(); ok && j.d.Cancel == nil && !j.gang {
			total := 0
			for _, x := range r.Ranges() {
				total += x.Len()
			}
			if sum := j.pending.len() + live + limbo + j.d.Done.len(); sum != total {
				return bad("job %d has %d tasks: %d wait, %d on nodes, %d in limbo, %d over", j.id, total, j.pending.len(), live, limbo, j.d.Done.len())
			}
		}
		for r := range j.pending.all() {
			for in := range j.d.Done.within(r) {
				return bad("tasks %v of job %d wait and are over", in, j.id)
			}
		}
		for i, g := range j.gangs {
			if j.pending.has(i) {
				return bad("gang %d.%d waits and is placed", j.id, i)
			}
			if d := j.d.Gangs[i]; g.phase == gangRunning && (d == nil || d.Over || d.Attempt != g.attempt) {
				return bad("gang %d.%d runs and the journal does not know", j.id, i)
			}
		}
	}
	for id, n := range c.nodes {
		for jid, s := range n.shares {
			if j := c.jobs[jid]; j == nil || j != s.job || j.nodes[id] != n {
				return bad("%s has a share of job %d, which does not know", id, jid)
			}
		}
		used := wire.Resources{}
		for task, p := range n.parts {
			if j := c.jobs[task.Job]; j == nil || j.gangs[task.Index] == nil {
				return bad("%s has a part of gang %s, which does not know", id, task)
			}
			used = used.Add(p.job.need, p.count)
		}
		if n.greeted && !n.total.Fits(used) {
			return bad("%s has gangs for %s and is %s", id, used, n.total)
		}
		if err := c.checkLeases(n); err != nil {
			return err
		}
	}
	return nil
}

// checkLeases: what a node has given is known on both sides, and is no more than it has.
func (c *Core) checkLeases(n *node) error {
	leased, offered := wire.Resources{}, wire.Resources{}
	for id, l := range n.gives {
		if l.on != n || l.id != id || l.to.takes[id] != l || l.slots <= 0 || c.nodes[l.to.id] != l.to {
			return errs.New(errs.Internal, "lease %d on %s is not one of %s", id, n.id, l.to.id)
		}
		if l.wait {
			continue // it counts when it has its turn
		}
		if l.seq == 0 {
			offered = offered.Add(l.room(l.slots), 1)
			continue // a slot waited for may be granted meanwhile: the node then grants less
		}
		leased = leased.Add(l.room(l.slots), 1)
	}
	for _, g := range c.groups.wait {
		if g.round != 0 && !g.kept[n.id] {
			offered = offered.Add(g.sum(g.plan[n.id]), 1)
		}
	}
	if !n.total.Fits(leased) {
		return errs.New(errs.Internal, "%s has leases for %s and is %s", n.id, leased, n.total)
	}
	if !offered.Equal(n.offered) {
		return errs.New(errs.Internal, "%s counts offers for %s; there are %s", n.id, n.offered, offered)
	}
	for _, d := range n.demands {
		has := 0
		for _, l := range n.takes {
			if l.shape == d.id {
				has += l.slots
			}
		}
		if d.has != has || d.flying < 0 || d.flying > has {
			return errs.New(errs.Internal, "%s counts %d slots of shape %d, %d under way; there are %d", n.id, d.has, d.id, d.flying, has)
		}
	}
	return nil
}
