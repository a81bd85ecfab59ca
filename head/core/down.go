package core

import (
	"fmt"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// downState is how far the end of the cluster has come: jobs end, agents go, the
// backends confirm it.
type downState struct {
	ids      []uint64 // requests that follow it
	drain    bool     // running work is let to its end
	phase    int
	deadline int64 // of the phase
	logsBy   int64 // when the last output must be in the record; 0 = not waited for yet
	told     string
	why      map[string]string // by pool: what keeps a backend from saying that allocations have ended
}

const (
	downJobs   = iota // jobs are stopped, or with drain run to their end
	downAgents        // agents were told to leave
	downAllocs        // allocations were cancelled
	downOver
)

// downRequest begins the end of the cluster, or joins it.
func (c *Core) downRequest(id uint64, r wire.Down) {
	if c.down != nil {
		c.down.ids = append(c.down.ids, id)
		if c.down.phase < downOver {
			c.down.told = ""
		}
		if c.down.drain && !r.Drain { // not that patient any more
			c.record(RecDown{Grace: r.Grace, At: c.now})
			c.down.drain = false
			c.stopAll()
		}
		return
	}
	c.record(RecDown{Drain: r.Drain, Grace: r.Grace, At: c.now})
	c.beginDown(id)
}

func (c *Core) beginDown(id uint64) {
	c.down = &downState{drain: c.d.st.Down.Drain}
	if id != 0 {
		c.down.ids = append(c.down.ids, id)
	}
	if !c.down.drain {
		c.stopAll()
	}
}

// stopAll cancels every job.
func (c *Core) stopAll() {
	grace := c.d.st.Down.Grace
	longest := int64(0)
	for _, j := range slices.Clone(c.queue) {
		c.cancelJob(j, "the cluster was brought down", wire.ReasonShutdown, grace)
		longest = max(longest, j.grace)
	}
	c.down.deadline = c.now + longest + 5*second
}

// stepDown goes on with the end of the cluster as far as it can.
func (c *Core) stepDown() {
	w := c.down
	if w == nil {
		return
	}
	for again := true; again; {
		again = false
		switch w.phase {
		case downJobs:
			if c.recovering && c.now < w.deadline { // who has not said Hello cannot be told
				break
			}
			if w.drain && len(c.queue) > 0 || !w.drain && len(c.queue) > 0 && c.now < w.deadline {
				break
			}
			for _, j := range slices.Clone(c.queue) { // what did not stop in time dies with its node
				c.record(RecJobEnd{Job: j.id, State: wire.StateCancelled, Code: 130, Cause: "the cluster was brought down", At: c.now})
				c.jobEnded(j)
			}
			if len(c.ended()) > 0 && c.logsInTime() || c.awaitSeat(nil) {
				break
			}
			for _, n := range c.order {
				n.leaving = true
				c.send(n, wire.MsgShutdown, wire.Shutdown{Grace: second, Why: "the cluster goes down"})
			}
			w.phase, w.deadline, again = downAgents, c.now+5*second, true
		case downAgents:
			if len(c.order) > 0 && c.now < w.deadline {
				break
			}
			for _, p := range c.sortedPools() {
				var hs [][]byte
				for _, t := range sortedKeys(c.d.st.Subs) {
					if s := c.d.st.Subs[t]; s.Pool == p.spec.Name {
						for _, a := range s.Allocs {
							if !a.Ended {
								p.cancel[string(a.Handle)] = true
								hs = append(hs, a.Handle)
							}
						}
					}
				}
				if len(hs) > 0 {
					c.effect(CancelAllocs{Pool: p.spec.Name, Handles: hs})
					p.query, p.flying = c.now, false
				}
			}
			w.phase, w.deadline, again = downAllocs, c.now+30*second, true
		case downAllocs:
			if len(c.d.st.Subs) > 0 && c.now < w.deadline {
				break
			}
			w.phase = downOver
			w.told = "the cluster is down"
			left := c.unconfirmed()
			if len(left) > 0 {
				w.told += ", but nothing confirmed the end of " + strings.Join(left, ", ")
			}
			c.answerDown()
			for _, id := range sortedKeys(c.wait) {
				c.fail(id, errs.New(errs.Unavailable, "the cluster went down"))
				delete(c.wait, id)
			}
			c.effect(CloseDown{Left: left})
			return
		case downOver:
			c.answerDown() // those who have joined since: the shell may take a while to end
			return
		}
	}
	text := c.downText()
	if text != w.told {
		w.told = text
		for _, id := range w.ids {
			c.effect(Reply{ID: id, Resp: wire.DownProgress{Nodes: len(c.order), Text: text}, More: true})
		}
	}
}

// answerDown tells all who wait that it is over.
func (c *Core) answerDown() {
	for _, id := range c.down.ids {
		c.answer(id, wire.DownProgress{Text: c.down.told, Final: true})
	}
	c.down.ids = nil
}

// unconfirmed names the nodes of which something may be left where they were.
func (c *Core) unconfirmed() (out []string) {
	for _, t := range sortedKeys(c.d.st.Subs) {
		s := c.d.st.Subs[t]
		why := c.down.why[s.Pool]
		for _, id := range s.Nodes {
			over := slices.ContainsFunc(s.Allocs, func(a *allocD) bool { return a.Ended && slices.Contains(a.Nodes, id) })
			if over {
				continue
			}
			text := string(id)
			if p := c.pools[s.Pool]; p != nil {
				for i, m := range p.spec.Places {
					if m != "" && wire.PlaceNode(s.Pool, i) == id {
						text = fmt.Sprintf("%s (%s)", m, id)
					}
				}
			}
			if why != "" { // once: one backend's word for all of them
				text, why = fmt.Sprintf("%s (%s)", text, why), ""
				delete(c.down.why, s.Pool)
			}
			out = append(out, text)
		}
	}
	return out
}

// hears notes why allocations that were cancelled are not known to have ended.
func (w *downState) hears(ev AllocStatus) {
	why := ""
	if ev.Err != nil {
		why = ev.Err.Error()
	}
	for _, it := range ev.Items {
		if it.State < AllocDone && it.Why != "" {
			why = it.Why
		}
	}
	if w.why == nil {
		w.why = map[string]string{}
	}
	w.why[ev.Pool] = why
}

// logsInTime waits a bounded time for the output of jobs that have ended.
func (c *Core) logsInTime() bool {
	if c.down.logsBy == 0 {
		c.down.logsBy = c.now + 5*second
	}
	return c.now < c.down.logsBy
}

func (c *Core) downText() string {
	switch c.down.phase {
	case downJobs:
		if n := len(c.queue); n > 0 {
			return fmt.Sprintf("%d jobs still run", n)
		}
		return "the last output is collected"
	case downAgents:
		return fmt.Sprintf("%d nodes still up", len(c.order))
	}
	return fmt.Sprintf("%d submissions are being ended", len(c.d.st.Subs))
}

// update compares a changed spec with the running cluster and, with Apply, takes it.
func (c *Core) update(id uint64, r wire.Update) {
	var a wire.UpdateAnswer
	var moved map[wire.NodeID]bool
	r.Pools, moved = c.mergePools(r.Pools)
	next := map[string]wire.Pool{}
	for _, p := range r.Pools {
		next[p.Name] = p
		old := c.pools[p.Name]
		switch {
		case old == nil:
			a.Changes = append(a.Changes, fmt.Sprintf("pool %s is new: %s, min %d, max %d", p.Name, p.Backend, p.Min, p.Max))
		case old.spec.Min != p.Min || old.spec.Max != p.Max:
			a.Changes = append(a.Changes, fmt.Sprintf("pool %s: min %d, max %d become min %d, max %d", p.Name, old.spec.Min, old.spec.Max, p.Min, p.Max))
		}
		if old != nil {
			if keys := changedKeys(old.spec, p); len(keys) > 0 {
				a.Changes = append(a.Changes, fmt.Sprintf("pool %s: changed are %s (setup, env and python for work that starts from now on, all else for nodes that join)", p.Name, strings.Join(keys, ", ")))
			}
			a.Changes = append(a.Changes, placesChange(p.Name, old.spec.Places, p.Places)...)
		}
	}
	for _, p := range c.sortedPools() {
		if _, ok := next[p.spec.Name]; !ok {
			a.Changes = append(a.Changes, fmt.Sprintf("pool %s goes", p.spec.Name))
		}
	}
	kept := map[string]int{}
	for _, n := range c.order {
		if p, ok := next[n.pool]; ok && kept[n.pool] < p.Max && c.durable(n).Drain == nil && !moved[n.id] {
			kept[n.pool]++
			continue
		}
		a.Removes = append(a.Removes, n.id)
		for _, s := range n.shares {
			a.Stops += uint32(len(s.running))
		}
		a.Stops += uint32(len(n.parts))
	}
	if !r.Apply {
		c.answer(id, a)
		return
	}
	c.record(RecPools{Pools: r.Pools, SpecText: r.SpecText, SpecPath: r.SpecPath})
	for _, nid := range a.Removes {
		if n := c.nodes[nid]; c.durable(n).Drain == nil {
			c.record(RecDrain{Node: nid, Epoch: n.epoch, Deadline: c.now + defaultGrace, Keep: true})
		}
	}
	c.loadPools()
	for _, p := range c.pools {
		for id := range moved {
			delete(p.troubles, id)
		}
	}
	c.full = true
	c.effect(ConfigChanged{Pools: r.Pools, SpecText: r.SpecText, SpecPath: r.SpecPath})
	c.answer(id, a)
}
