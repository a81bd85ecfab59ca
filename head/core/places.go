package core

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"launcher/wire"
)

// Some pools are lists of particular machines (wire.Pool.Places): node POOL-i is the i-th
// of them, whatever else changes in the list. Each is asked for by a submission of its
// own, many at a time, and fails and is tried again by itself.

// trouble is what keeps one machine of such a pool away.
type trouble struct {
	failures int   // in a row
	next     int64 // no submission before
	why      string
	final    bool // trying again without a change helps nothing, as far as one knows
}

func (p *pool) named() bool { return len(p.spec.Places) > 0 }

// machines is how many the pool has.
func (p *pool) machines() int {
	n := 0
	for _, m := range p.spec.Places {
		if m != "" {
			n++
		}
	}
	return n
}

// troubleOf gives the trouble of a node, made if need be.
func (p *pool) troubleOf(id wire.NodeID) *trouble {
	t := p.troubles[id]
	if t == nil {
		t = &trouble{}
		p.troubles[id] = t
	}
	return t
}

// submitPlaces asks for up to k machines, each by itself.
func (c *Core) submitPlaces(p *pool, k int) {
	for i, m := range p.spec.Places {
		id := wire.PlaceNode(p.spec.Name, i)
		d := c.d.st.Nodes[id]
		t := p.troubles[id]
		switch {
		case k == 0:
			return
		case m == "" || t != nil && c.now < t.next:
			continue
		case d == nil:
			c.ask(p, SubmitNodes{Nodes: []wire.NodeID{id}, Epochs: []wire.Epoch{1}, Places: []string{m}})
		case d.State == nodeGone && (d.Drain == nil || d.Drain.Keep) && !c.allocated(d):
			c.ask(p, SubmitNodes{Nodes: []wire.NodeID{id}, Epochs: []wire.Epoch{d.Epoch + 1}, Places: []string{m}})
		default:
			continue
		}
		k--
	}
}

// blame notes why nodes of a pool are not there, and lets what is to be asked for again
// wait.
func (c *Core) blame(p *pool, ids []wire.NodeID, why string, final bool) {
	if p == nil {
		return
	}
	if !p.named() {
		c.failed(p, why)
		return
	}
	for _, id := range ids {
		t := p.troubleOf(id)
		t.why, t.final = cmp.Or(why, t.why), final || why == "" && t.final
		t.next = c.now + min(firstRetry<<min(t.failures, 6), lastRetry)
		t.failures++
	}
}

// retry lets no pool and no machine wait for its next try.
func (c *Core) retry() {
	for _, p := range c.pools {
		p.next, p.failures, p.why, p.final = 0, 0, "", false
		for _, t := range p.troubles {
			t.next, t.failures, t.final = 0, 0, false
		}
		p.query = c.now
	}
	for t, s := range c.d.st.Subs {
		if p := c.pools[s.Pool]; p != nil && !s.Known {
			p.stale[t] = true
		}
	}
}

// says notes why nodes of a pool are not there yet.
func (p *pool) says(ids []wire.NodeID, why string, final bool) {
	if p == nil {
		return
	}
	if !p.named() {
		p.why = why
		return
	}
	for _, id := range ids {
		t := p.troubleOf(id)
		t.why, t.final = why, final
	}
}

// whyNot is the newest failure of a pool, or of one of its machines.
func (p *pool) whyNot(id wire.NodeID) string {
	if t := p.troubles[id]; t != nil {
		return t.why
	}
	return p.why
}

// failing lists the machines of a pool that are known not to come at the moment.
func (c *Core) failing(p *pool) (out []wire.NodeFailure) {
	for i, m := range p.spec.Places {
		id := wire.PlaceNode(p.spec.Name, i)
		t, d := p.troubles[id], c.d.st.Nodes[id]
		if m == "" || t == nil || t.failures == 0 || d != nil && d.State == nodeUp {
			continue
		}
		out = append(out, wire.NodeFailure{Node: id, Place: m, Why: t.why, Tries: t.failures, Next: t.next, Final: t.final})
	}
	return out
}

// coming leaves those out of pending that are failing.
func (c *Core) coming(p *pool, pending int, failing []wire.NodeFailure) int {
	for _, f := range failing {
		d := c.d.st.Nodes[f.Node]
		if d != nil && (d.State == nodeAsked || d.State == nodeLost || d.State == nodeGone && c.allocated(d)) {
			pending--
		}
	}
	return max(0, pending)
}

// mergePlaces gives machines that stay their old places and new ones the places that have
// become free.
func mergePlaces(old, next []string) []string {
	if len(next) == 0 {
		return nil
	}
	out := make([]string, len(old), max(len(old), len(next)))
	var fresh []string
	for _, m := range next {
		if i := slices.Index(old, m); i >= 0 {
			out[i] = m
		} else {
			fresh = append(fresh, m)
		}
	}
	for i := 0; i < len(out) && len(fresh) > 0; i++ {
		if out[i] == "" {
			out[i], fresh = fresh[0], fresh[1:]
		}
	}
	out = append(out, fresh...)
	for len(out) > 0 && out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	return out
}

// mergePools keeps machines at their places in the pools of a changed spec. moved are the
// nodes whose machine is another one now, or none.
func (c *Core) mergePools(pools []wire.Pool) (merged []wire.Pool, moved map[wire.NodeID]bool) {
	merged, moved = slices.Clone(pools), map[wire.NodeID]bool{}
	for i := range merged {
		p := &merged[i]
		k := slices.IndexFunc(c.d.st.Pools, func(q wire.Pool) bool { return q.Name == p.Name && q.Backend == p.Backend })
		if k < 0 {
			continue
		}
		if old := &c.d.st.Pools[k]; old.Until == p.Until && old.UntilAt > c.now {
			p.UntilAt = old.UntilAt // the same time of day is another time tomorrow
		}
		was := c.d.st.Pools[k].Places
		p.Places = mergePlaces(was, p.Places)
		for n, m := range was {
			if m != "" && (n >= len(p.Places) || p.Places[n] != m) {
				moved[wire.PlaceNode(p.Name, n)] = true
			}
		}
	}
	return merged, moved
}

// placesChange says how the machines of a pool change.
func placesChange(name string, old, next []string) (out []string) {
	list := func(of, notIn []string) (l []string) {
		for _, m := range of {
			if m != "" && !slices.Contains(notIn, m) {
				l = append(l, m)
			}
		}
		return l
	}
	if gone := list(old, next); len(gone) > 0 {
		out = append(out, fmt.Sprintf("pool %s: without %s", name, strings.Join(gone, ", ")))
	}
	if come := list(next, old); len(come) > 0 {
		out = append(out, fmt.Sprintf("pool %s: with %s", name, strings.Join(come, ", ")))
	}
	return out
}

// changedKeys names the keys of a pool that differ but for how many nodes it has and which.
func changedKeys(a, b wire.Pool) (out []string) {
	for _, k := range []struct {
		name string
		a, b any
	}{
		{"backend", a.Backend, b.Backend}, {"idle", a.Idle, b.Idle}, {"hold", a.Hold, b.Hold}, {"total", a.Total, b.Total}, {"until", a.Until, b.Until},
		{"max_jobs", a.MaxJobs, b.MaxJobs}, {"setup", a.Setup, b.Setup}, {"env", a.Env, b.Env}, {"python", a.Python, b.Python}, {"container", a.Container, b.Container},
		{"resources", a.Resources, b.Resources}, {"labels", a.Labels, b.Labels}, {"share", a.Share, b.Share},
	} {
		if string(wire.Marshal(k.a)) != string(wire.Marshal(k.b)) {
			out = append(out, k.name)
		}
	}
	if slices.Equal(a.Places, b.Places) && string(a.Options) != string(b.Options) { // the machines are among them
		out = append(out, "what is "+b.Backend+"'s own")
	}
	return out
}
