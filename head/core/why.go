package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// checkPossible fails a job at once that no node the cluster can ever have could run.
func (c *Core) checkPossible(j *job) {
	if j.d.State != 0 || j.d.Cancel != nil {
		return
	}
	if why := c.impossible(j); why != "" {
		c.record(RecJobEnd{Job: j.id, State: wire.StateFailed, Code: 125, Cause: why, At: c.now})
		c.jobEnded(j)
	}
}

// impossible says why the job can never run, or "". It uses the predicates of
// placement (eligible, Times), on what nodes have in all rather than what is free.
func (c *Core) impossible(j *job) string {
	s := &j.d.Spec
	if why := overLimit(s.Limits, j.whole()); why != "" {
		return why
	}
	want, sum, nodes := int(max(1, s.Ranks)), 0, 0
	var largest wire.NodeID
	var most wire.Resources
	refused := ""
	seen := 0
	for _, p := range c.sortedPools() {
		if s.Pool != "" && s.Pool != p.spec.Name {
			continue
		}
		fits := func(r wire.Resources) {
			k := r.Times(j.need, want)
			if s.RanksPerNode > 0 {
				if k = min(k, int(s.RanksPerNode)); s.Nodes > 0 && k < int(s.RanksPerNode) {
					k = 0
				}
			}
			if sum += k; k > 0 {
				nodes++
			}
		}
		have := 0
		for _, n := range c.order {
			if n.pool != p.spec.Name || !n.greeted || s.Node != "" && s.Node != n.id {
				continue
			}
			have++
			seen++
			if why := j.avoid[n.id]; why != "" {
				refused = fmt.Sprintf("%s: %s", n.id, why)
				continue
			}
			if largest == "" || larger(n.hello.Total, most, j.need) {
				largest, most = n.id, n.hello.Total
			}
			fits(n.hello.Total)
		}
		if s.Node != "" {
			if d := c.d.st.Nodes[s.Node]; d != nil && d.Pool == p.spec.Name && have == 0 && d.State != nodeGone {
				return "" // it may come yet
			}
			continue
		}
		if more := p.spec.Max - have; more > 0 {
			if p.shape == nil || p.spec.Max > have && c.mixed(p) {
				return "" // what its other nodes will have is not known
			}
			for range min(more, want) {
				fits(*p.shape)
			}
			if largest == "" {
				largest, most = wire.NodeID("a node of pool "+p.spec.Name), *p.shape
			}
		}
	}
	switch {
	case sum >= want && nodes >= int(s.Nodes):
		return ""
	case refused != "" && sum == 0:
		return refused
	case largest == "" && seen == 0:
		return ""
	case !j.gang:
		return fmt.Sprintf("a task asks for %s; the largest node, %s, has %s", j.need, largest, most)
	case s.Nodes > 0:
		return fmt.Sprintf("%d nodes with %d ranks each are asked for, %s per rank; %d nodes can ever hold that, the largest, %s, has %s", s.Nodes, max(1, s.RanksPerNode), j.need, nodes, largest, most)
	}
	return fmt.Sprintf("%d ranks are asked for, each with %s; all nodes together can ever hold %d of them, the largest, %s, has %s", want, j.need, sum, largest, most)
}

// mixed reports whether the nodes of a pool are known to differ.
func (c *Core) mixed(p *pool) bool {
	for _, n := range c.order {
		if n.pool == p.spec.Name && n.greeted && (n.hello.Total.CPU != p.shape.CPU || n.hello.Total.GPU != p.shape.GPU) {
			return true
		}
	}
	return false
}

// larger compares nodes by what a job asks for.
func larger(a, b, need wire.Resources) bool {
	if need.GPU > 0 && a.GPU != b.GPU {
		return a.GPU > b.GPU
	}
	if a.CPU != b.CPU {
		return a.CPU > b.CPU
	}
	return a.Memory > b.Memory
}

// why answers `launcher why`.
func (c *Core) why(id uint64, r wire.Why) {
	switch {
	case r.Pool != "":
		p := c.pools[r.Pool]
		if p == nil {
			c.fail(id, errs.New(errs.NotFound, "there is no pool %q in cluster %s", r.Pool, c.cfg.Cluster).Hint("its pools are %s", strings.Join(sortedKeys(c.pools), ", ")))
			return
		}
		c.answer(id, wire.WhyAnswer{Lines: c.whyPool(p)})
	case c.d.st.Jobs[r.Job] == nil:
		c.noJob(id, r.Job)
	case r.Task != nil:
		d := c.d.st.Jobs[r.Job]
		j := c.jobs[r.Job]
		if !d.Done.has(*r.Task) && (j == nil || !j.knows(*r.Task)) {
			c.fail(id, errs.New(errs.NotFound, "job %d has no task %d", r.Job, *r.Task))
			return
		}
		c.answer(id, wire.WhyAnswer{Lines: c.whyTask(d, *r.Task)})
	default:
		c.answer(id, wire.WhyAnswer{Lines: c.whyJob(c.d.st.Jobs[r.Job])})
	}
}

func (c *Core) whyPool(p *pool) []string {
	up, pending, retired, _ := c.standing(p)
	out := []string{fmt.Sprintf("pool %s: %d of %d wanted nodes are up, %d are under way (min %d, max %d)", p.spec.Name, up, p.wanted, pending, p.spec.Min, p.spec.Max)}
	if retired > 0 {
		out = append(out, fmt.Sprintf("drained by hand: %d; at most %d nodes are asked for then, not %d", retired, max(0, p.spec.Max-retired), p.spec.Max))
	}
	if p.why != "" && (up < p.wanted || pending > 0) {
		if p.failures > 0 {
			out = append(out, "the last failure: "+p.why)
		} else {
			out = append(out, p.why)
		}
	}
	if p.over != "" {
		out = append(out, "no more nodes are asked for: "+p.over)
	}
	for _, n := range c.order {
		if d := c.durable(n); n.pool == p.spec.Name && d.Drain != nil && d.Drain.Why != "" {
			out = append(out, fmt.Sprintf("%s leaves: %s", n.id, d.Drain.Why))
		} else if n.pool == p.spec.Name && n.ends != 0 {
			out = append(out, fmt.Sprintf("%s leaves in %s: %s", n.id, lasting(n.ends-c.now), n.endsWhy))
		}
		if n.pool == p.spec.Name && n.suspect && n.said != "" {
			out = append(out, fmt.Sprintf("%s does not answer: %s", n.id, n.said))
		}
		if n.pool == p.spec.Name && n.beat.Needed && c.now-n.since > second { // an agent says so until it has looked
			out = append(out, fmt.Sprintf("%s has values that others need: it stays until they are elsewhere or its time is over", n.id))
		}
		if n.pool == p.spec.Name && n.beat.Why != "" {
			out = append(out, n.beat.Why)
		}
	}
	if p.next > c.now && up+pending < p.wanted {
		out = append(out, fmt.Sprintf("asked for again in %d s", (p.next-c.now+second-1)/second))
	}
	for _, f := range c.failing(p) {
		again := ""
		if f.Next > c.now {
			again = fmt.Sprintf(", asked for again in %d s", (f.Next-c.now+second-1)/second)
		}
		out = append(out, fmt.Sprintf("%s (%s): %s%s", f.Node, f.Place, f.Why, again))
	}
	for _, nid := range sortedKeys(c.d.st.Nodes) {
		if d := c.d.st.Nodes[nid]; d.Pool == p.spec.Name && d.State != nodeUp && d.Cause != "" && p.troubles[nid] == nil {
			out = append(out, fmt.Sprintf("%s: %s", nid, d.Cause))
		}
	}
	return out
}

func (c *Core) whyTask(d *jobD, i uint32) []string {
	x := c.taskInfo(d, i, c.runningOf(d.ID))
	name := x.Task.String()
	switch {
	case x.State.Terminal() && x.Cause != "":
		return []string{fmt.Sprintf("task %s is over: %s: %s", name, x.State, x.Cause)}
	case x.State.Terminal():
		return []string{fmt.Sprintf("task %s is over: %s, exit code %d", name, x.State, x.ExitCode)}
	case x.State == wire.StateRunning:
		return []string{fmt.Sprintf("task %s runs on %s, attempt %d", name, x.Node, x.Attempt)}
	}
	j := c.jobs[d.ID]
	if on := c.where(j, i); len(on) > 0 && !j.gang {
		return []string{fmt.Sprintf("task %s waits on node %s behind what runs there", name, on[0].id)}
	}
	return append([]string{fmt.Sprintf("task %s waits, attempt %d", name, x.Attempt)}, c.waiting(j)...)
}

func (c *Core) whyJob(d *jobD) []string {
	x := c.jobInfo(d)
	if x.State.Terminal() {
		l := fmt.Sprintf("job %d is over: %s, exit code %d", d.ID, x.State, x.ExitCode)
		if x.Cause != "" {
			l += ": " + x.Cause
		}
		return []string{l}
	}
	j := c.jobs[d.ID]
	if d.Cancel != nil {
		return []string{fmt.Sprintf("job %d is being stopped: %d tasks still run, they have %d s from SIGTERM to SIGKILL", d.ID, j.live+len(j.gangs), j.grace/second)}
	}
	out := []string{fmt.Sprintf("job %d: %d of %d tasks are over, %d run, %d wait", d.ID, x.Done+x.Failed+x.Cancelled, x.Tasks, x.Running, x.Waiting)}
	for _, l := range j.limbo {
		who := "a node that is lost"
		if l.node != "" {
			who = string(l.node)
		}
		out = append(out, fmt.Sprintf("%d tasks are exclusive and were on %s, which is silent: they run again in %d s, when its lease is certainly over", l.tries.len(), who, (l.until-c.now+second-1)/second))
	}
	out = append(out, c.heldOutput(d.ID)...)
	out = append(out, c.whyGroups(fmt.Sprint(d.ID))...)
	out = append(out, c.halfSaved(j)...)
	out = append(out, d.lostChecks()...)
	out = append(out, c.whyPrograms(j)...)
	if j.pending.len() > 0 {
		out = append(out, c.waiting(j)...)
		for _, p := range c.sortedPools() {
			if (d.Spec.Pool == "" || d.Spec.Pool == p.spec.Name) && c.tooShort(p, j) {
				out = append(out, fmt.Sprintf("pool %s is not asked for nodes: they last %s at most, and the job asks for %s", p.spec.Name, lasting(p.spec.Lasts), lasting(cmp.Or(d.Spec.TimeRequest, d.Spec.TimeLimit))))
			}
		}
	}
	return out
}

// heldOutput says where a job's output cannot be written.
func (c *Core) heldOutput(job wire.JobID) (out []string) {
	for _, n := range c.order {
		for _, h := range n.beat.Held {
			if h.Job == job {
				out = append(out, fmt.Sprintf("processes on node %s wait in write: %s", n.id, h.Why))
			}
		}
	}
	return out
}

// heldChanged tells who watches a job that its output waits, or goes on.
func (c *Core) heldChanged(n *node, now []wire.HeldOutput) {
	if slices.Equal(n.beat.Held, now) {
		return
	}
	for _, h := range slices.Concat(n.beat.Held, now) {
		if j := c.jobs[h.Job]; j != nil {
			j.touch()
		}
	}
}

// waiting says what a job's next task waits for, by the predicates that place it.
func (c *Core) waiting(j *job) []string {
	if c.recovering {
		var missing []string
		for _, n := range c.order {
			if !n.greeted {
				missing = append(missing, string(n.id))
			}
		}
		return []string{"the head has restarted and waits for " + strings.Join(missing, ", ") + " before it hands anything out"}
	}
	var out []string
	if why := c.atLimit(fmt.Sprint(j.id), j.d.Spec.Limits, j.whole()); why != "" {
		return []string{"waits: " + why}
	}
	if j.d.Spec.Priority != 0 {
		out = append(out, fmt.Sprintf("its priority is %d", j.d.Spec.Priority))
	}
	if j.backoff > c.now {
		out = append(out, fmt.Sprintf("a node refused its reservation (%s), tried again in %d ms", j.refused, (j.backoff-c.now)/millisecond))
	}
	out = append(out, c.whyApart(j)...)
	up := 0
	reasons := map[string][]string{}
	note := func(n *node, why string) { reasons[why] = append(reasons[why], string(n.id)) }
	for _, n := range c.order {
		switch why := c.eligible(n, j); {
		case why != "":
			note(n, why)
		case c.durable(n).Drain != nil:
			note(n, "it is draining")
		case !c.usable(n):
			note(n, "it is silent")
		case !c.mayUse(n, j):
			note(n, "its room is held for "+n.held.String())
		default:
			up++
			free := c.room(n, j, true)
			if !free.Fits(j.need) {
				note(n, c.busyWith(n, j))
			} else if j.gang {
				note(n, fmt.Sprintf("it has room for %d ranks of %d", free.Times(j.need, int(max(1, j.d.Spec.Ranks))), max(1, j.d.Spec.Ranks)))
			}
		}
	}
	for _, why := range slices.SortedFunc(slices.Values(sortedKeys(reasons)), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(reasons[b]), len(reasons[a])), cmp.Compare(a, b))
	}) {
		ids := reasons[why]
		if len(ids) > 4 {
			ids = append(ids[:3:3], fmt.Sprintf("%d more", len(ids)-3))
		}
		out = append(out, strings.Join(ids, ", ")+": "+why)
	}
	if len(c.order) == 0 {
		out = append(out, "no node is up yet")
	}
	for _, p := range c.sortedPools() {
		if u, pending, _, _ := c.standing(p); (pending > 0 || u < p.wanted) && (j.d.Spec.Pool == "" || j.d.Spec.Pool == p.spec.Name) {
			out = append(out, c.whyPool(p)[0])
			if p.why != "" {
				out = append(out, "  "+p.why)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, "it is about to start")
	}
	return out
}

// whyPrograms says what tasks of a job's programs use and wait for.
func (c *Core) whyPrograms(j *job) (out []string) {
	owner := fmt.Sprint(j.id)
	if use := c.jobUses(j); !use.Nothing() {
		s := fmt.Sprintf("job %d has %s", j.id, use)
		if len(j.d.Spec.Limits) > 0 {
			s += ", its limit is " + j.d.Spec.Limits.String()
		}
		out = append(out, s)
	}
	for _, n := range c.order {
		for _, id := range sortedKeys(n.demands) {
			d := n.demands[id]
			if d.spec.Owner != owner || d.waiting == 0 {
				continue
			}
			s := fmt.Sprintf("%d tasks that want %s wait on %s", d.waiting, d.spec.Resources, n.id)
			if d.told != "" {
				s += ": " + d.told
			}
			out = append(out, s)
		}
	}
	return out
}

// busyWith names the jobs that use a node's room.
func (c *Core) busyWith(n *node, j *job) string {
	ids := map[wire.JobID]bool{}
	for id := range n.shares {
		ids[id] = true
	}
	for t := range n.parts {
		ids[t.Job] = true
	}
	var s []string
	for _, id := range sortedKeys(ids) {
		s = append(s, fmt.Sprint(id))
	}
	what := "job " + strings.Join(s, ", ")
	switch tasks := !n.tasks.Nothing() || len(n.gives) > 0; {
	case tasks && len(s) == 0:
		what = "tasks of programs"
	case tasks:
		what += " and tasks of programs"
	}
	return fmt.Sprintf("busy with %s, the task asks for %s", what, j.need)
}
