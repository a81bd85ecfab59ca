package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

// Apply applies one record. An error means that the record cannot follow what came
// before it: the journal is damaged or this is a bug.
func (d *Durable) Apply(r Record) error { return d.apply(r, false) }

// apply is Apply; live says that the record was just made, and that the machine has
// already been asked (RecSpawn).
func (d *Durable) apply(r Record, live bool) error {
	s := &d.st
	switch r := r.(type) {
	case RecHead:
		if s.Created == 0 {
			s.Created = r.At
		} else {
			r.Nonce = s.Head.Nonce
		}
		if r.Epoch <= s.Head.Epoch {
			return errs.New(errs.Corrupt, "head epoch %d after %d", r.Epoch, s.Head.Epoch)
		}
		if r.Seat != s.Head.Seat {
			s.Moves, s.Moved = s.Moves+1, r.At
		} else {
			r.Why = cmp.Or(r.Why, s.Head.Why)
		}
		s.Head = r
		if r.Moved { // what the end of the journal gave out is never given out again
			s.NextJob += movedGap
			s.Numbers += movedGap
		}
		if r.Again {
			s.Down, s.Chains = nil, map[string]*chainD{}
			s.Moves, s.Moved = 0, 0
		}
	case RecPools:
		s.Pools, s.SpecText, s.SpecPath = r.Pools, r.SpecText, r.SpecPath
		for _, n := range s.Nodes { // a new spec asks for what was drained, too
			if n.State == nodeGone {
				n.Drain = nil
			}
		}
	case RecDown:
		s.Down = &r
	case RecRecovered:
		s.Unnamed = false
	case RecGroup:
		s.Groups[r.Spec.ID] = &r
	case RecGroupOver:
		delete(s.Groups, r.ID)
	case RecActor, RecActorMoved, RecActorOver:
		d.applyActor(r)
	case RecSubmission, RecAllocs, RecUnsubmit, RecAllocEnded, RecNodeUp, RecNodeGone, RecDrain:
		return d.applyNode(r)
	case RecJob:
		return d.applyJob(r)
	case RecEnds:
		return d.applyEnds(r)
	default:
		return d.applyToJob(r, live)
	}
	return nil
}

func (d *Durable) applyNode(r Record) error {
	s := &d.st
	switch r := r.(type) {
	case RecSubmission:
		if len(r.Nodes) != len(r.Epochs) {
			return errs.New(errs.Corrupt, "submission %s names %d nodes and %d epochs", r.Token, len(r.Nodes), len(r.Epochs))
		}
		s.Subs[r.Token] = &subD{Token: r.Token, Pool: r.Pool, Nodes: r.Nodes, Epochs: r.Epochs, At: r.At}
		for i, id := range r.Nodes {
			s.Nodes[id] = &nodeD{ID: id, Epoch: r.Epochs[i], Pool: r.Pool, Token: r.Token, State: nodeAsked, Since: r.At}
		}
	case RecAllocs:
		sub := s.Subs[r.Token]
		if sub == nil {
			return errs.New(errs.Corrupt, "allocations of submission %q, which is not known", r.Token)
		}
		sub.Known = true
		s.chain(sub.Pool).Allocs += len(r.Allocs)
		for _, a := range r.Allocs {
			sub.Allocs = append(sub.Allocs, &allocD{Handle: a.Handle, Nodes: a.Nodes})
		}
	case RecUnsubmit:
		sub := s.Subs[r.Token]
		if sub == nil {
			return nil
		}
		delete(s.Subs, r.Token)
		for i, id := range sub.Nodes {
			d.nodeGone(id, sub.Epochs[i], true, r.Why, r.At)
		}
	case RecAllocEnded:
		sub := s.Subs[r.Token]
		if sub == nil {
			return nil
		}
		over := true
		for _, a := range sub.Allocs {
			if string(a.Handle) == string(r.Handle) {
				a.Ended = true
				if ch := s.chain(sub.Pool); r.Unused && ch.Allocs > 0 {
					ch.Allocs--
				}
				for _, id := range a.Nodes {
					if i := slices.Index(sub.Nodes, id); i >= 0 {
						d.nodeGone(id, sub.Epochs[i], true, r.Why, r.At)
					}
				}
			}
			over = over && a.Ended
		}
		if over {
			delete(s.Subs, r.Token)
		}
	case RecNodeUp:
		n := s.Nodes[r.Node]
		if n == nil || n.Epoch != r.Epoch {
			return errs.New(errs.Corrupt, "node %s of epoch %d joined, which was not asked for", r.Node, r.Epoch)
		}
		n.State, n.Since, n.Host, n.Total, n.Cause = nodeUp, r.At, r.Host, r.Total, ""
		if ch := s.chain(n.Pool); ch.First == 0 {
			ch.First = r.At
		}
		if n.Number == 0 {
			n.Number = r.Number
		}
		s.Numbers = max(s.Numbers, r.Number)
	case RecNodeGone:
		s.Unnamed = s.Unnamed || r.Unnamed
		d.nodeGone(r.Node, r.Epoch, r.Proof, r.Cause, r.At)
	case RecDrain:
		if n := s.Nodes[r.Node]; n != nil && n.Epoch == r.Epoch {
			n.Drain = &r
		}
	}
	return nil
}

// nodeGone marks a node lost or gone and fails the ranks of gangs that it had.
func (d *Durable) nodeGone(id wire.NodeID, epoch wire.Epoch, proof bool, cause string, at int64) {
	n := d.st.Nodes[id]
	if n == nil || n.Epoch != epoch || n.State == nodeGone || (n.State == nodeLost && !proof) {
		return
	}
	n.State, n.Since, n.Cause = nodeLost, at, cause
	if proof {
		n.State = nodeGone
	}
	for _, jid := range sortedKeys(d.st.Jobs) {
		j := d.st.Jobs[jid]
		if j.State != 0 {
			continue
		}
		for _, i := range sortedKeys(j.Gangs) {
			d.partLost(j, i, id, epoch, false, fmt.Sprintf("node %s: %s", id, cause), at)
		}
	}
}

// partLost gives up the ranks of a gang on one node.
func (d *Durable) partLost(j *jobD, i uint32, id wire.NodeID, epoch wire.Epoch, free bool, cause string, at int64) {
	g := j.Gangs[i]
	if g == nil || g.Over {
		return
	}
	for k, p := range g.Nodes {
		if p.Node != id || g.Epochs[k] != epoch {
			continue
		}
		for r := p.First; r < p.First+p.Count; r++ {
			if g.Ends[r] == nil {
				g.Ends[r] = &detail{EndItem: EndItem{Index: i, Attempt: g.Attempt, Rank: r, Code: -1, Reason: wire.ReasonLost, Ended: at, Cause: cause}, Node: id, Lost: true, Free: free}
			}
		}
	}
	d.settleGang(j, i, at)
}

func (d *Durable) applyJob(r RecJob) error {
	if d.st.Jobs[r.Job] != nil || r.Job <= d.st.NextJob {
		return errs.New(errs.Corrupt, "job %d accepted twice", r.Job)
	}
	m, err := d.machine(r.Spec, nil)
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "job %d", r.Job)
	}
	j := &jobD{ID: r.Job, Token: r.Token, Spec: r.Spec, Submitted: r.At, m: m}
	j.make()
	d.st.Jobs[r.Job], d.st.NextJob = j, r.Job
	if r.Token != "" {
		d.st.Tokens[r.Token] = r.Job
	}
	d.over(j, r.At)
	return nil
}

// over ends the job when its machine says so.
func (d *Durable) over(j *jobD, at int64) {
	if j.State == 0 && j.Cancel == nil {
		if s, code, cause, over := j.m.Over(); over {
			d.finish(j, s, code, cause, at)
		}
	}
}

func (d *Durable) applyToJob(r Record, live bool) error {
	id, ok := jobOf(r)
	if !ok {
		return errs.New(errs.Corrupt, "a record of type %T", r)
	}
	j := d.st.Jobs[id]
	if j == nil || j.State != 0 {
		if r, ok := r.(RecLogsDone); ok && j != nil {
			j.LogsDone = true
			_ = r
			d.forget()
		}
		return nil // late news of a job that is over
	}
	switch r := r.(type) {
	case RecJobCancel:
		if j.Cancel == nil {
			j.Cancel = &r
		}
	case RecTaskCancel:
		if !j.Done.has(r.Index) {
			j.Unwanted[r.Index] = true
		}
	case RecLost:
		d.applyLost(j, r)
	case RecGang:
		starts := uint32(1)
		if g := j.Gangs[r.Index]; g != nil {
			starts += g.Starts
		}
		j.Gangs[r.Index] = &gangD{Attempt: r.Attempt, World: r.World, Nodes: r.Nodes, Epochs: r.Epochs, Master: r.Master,
			Port: r.Port, At: r.At, Starts: starts, Ends: map[uint32]*detail{}}
	case RecGangFault:
		if g := j.Gangs[r.Index]; g != nil && g.Attempt == r.Attempt && !g.Over && g.Fault == nil {
			g.Fault = &r
		}
	case RecSpawn:
		if !live {
			j.m.Next(r.Max)
		}
		for _, sp := range r.Spawns {
			j.Spawns[sp.Index] = &sp
		}
	case RecReport:
		j.Reported[r.Report.Proc.Index] = reportD{Attempt: r.Report.Proc.Attempt, Time: r.Report.Time, No: r.Report.No}
		d.advice = j.m.Report(r.Report)
		d.over(j, r.Report.Time)
	case RecLearned:
		j.Learned = r.Learned
	case RecTold:
		j.Told[r.Index] = toldD{Attempt: r.Attempt, Leave: r.Leave}
	case RecCheckpoint:
		d.applyCheckpoint(j, r)
	case RecJobEnd:
		d.finish(j, r.State, r.Code, r.Cause, r.At)
	}
	return nil
}

// jobOf names the job that a record is about.
func jobOf(r Record) (wire.JobID, bool) {
	switch r := r.(type) {
	case RecJobCancel:
		return r.Job, true
	case RecTaskCancel:
		return r.Job, true
	case RecLost:
		return r.Job, true
	case RecGang:
		return r.Job, true
	case RecGangFault:
		return r.Job, true
	case RecSpawn:
		return r.Job, true
	case RecReport:
		return r.Report.Proc.Job, true
	case RecTold:
		return r.Job, true
	case RecLearned:
		return r.Job, true
	case RecCheckpoint:
		return r.Job, true
	case RecJobEnd:
		return r.Job, true
	case RecLogsDone:
		return r.Job, true
	}
	return 0, false
}

func (d *Durable) applyCheckpoint(j *jobD, r RecCheckpoint) {
	c := j.Checks[r.Index]
	if c == nil {
		c = &checkD{}
		j.Checks[r.Index] = c
	}
	c.List = slices.Clone(c.List)
	if r.Gone {
		for k := range c.List {
			if x := &c.List[k]; !x.Gone && x.Path == r.Path && x.Step == r.Step {
				x.Gone, x.At = true, r.At
			}
		}
		return
	}
	// Those that are gone are in nobody's way, as the best or the newest.
	c.List = append(slices.DeleteFunc(c.List, func(x RecCheckpoint) bool { return x.Gone }), r)
	for _, old := range c.surplus(j.Spec.Train) {
		c.List = slices.DeleteFunc(c.List, func(x RecCheckpoint) bool { return x.Path == old.Path && x.Step == old.Step })
	}
}

// surplus lists the checkpoints that are not kept: all but the newest Keep and, where
// there is a score, the best.
func (c *checkD) surplus(t *wire.TrainSpec) []RecCheckpoint {
	keep := 1
	if t != nil {
		keep = max(1, t.Keep)
	}
	if len(c.List) <= keep {
		return nil
	}
	best := -1
	for i, x := range c.List {
		if x.Score != nil && (best < 0 || *x.Score > *c.List[best].Score) {
			best = i
		}
	}
	var out []RecCheckpoint
	for i, x := range c.List[:len(c.List)-keep] {
		if i != best {
			out = append(out, x)
		}
	}
	return out
}

func (d *Durable) applyLost(j *jobD, r RecLost) {
	if isGang(&j.Spec) {
		for _, x := range r.Ranges {
			for i := x.From; i < x.To; i++ {
				if g := j.Gangs[i]; g != nil && !g.Over {
					for k, p := range g.Nodes {
						if p.Node == r.Node {
							d.partLost(j, i, p.Node, g.Epochs[k], r.Free, r.Cause, r.At)
						}
					}
				}
			}
		}
		return
	}
	for _, x := range r.Ranges {
		for i := x.From; i < x.To; i++ {
			if !j.Done.has(i) {
				d.conclude(j, jobs.End{Index: i, Attempt: j.standing(i).Attempt, Code: -1, Reason: wire.ReasonLost, Lost: true, Cause: r.Cause, Time: r.At}, r.Free)
			}
		}
	}
}

func (d *Durable) applyEnds(r RecEnds) error {
	if n := d.st.Nodes[r.Node]; n != nil && n.Epoch == r.Epoch {
		n.Acked = max(n.Acked, r.Seq)
	}
	for _, p := range r.Parts {
		j := d.st.Jobs[p.Job]
		if j == nil {
			continue
		}
		j.logEnd(r.Node, r.Epoch, p.LogEnd)
		if j.State != 0 {
			continue
		}
		if p.First != 0 && (j.Started == 0 || p.First < j.Started) {
			j.Started = p.First
		}
		for _, x := range p.Runs {
			for i := x.From; i < x.To; i++ {
				if !j.Done.has(i) && j.standing(i).Attempt == x.Attempt {
					delete(j.Details, i)
					e := jobs.End{Index: i, Attempt: x.Attempt, Code: x.Code, Time: r.At}
					if x.Code != 0 {
						e.Cause = j.cause(&detail{EndItem: EndItem{Index: i, Code: x.Code}, Node: r.Node})
					}
					d.conclude(j, e, false)
				}
			}
		}
		for _, it := range p.Items {
			d.applyItem(j, r, it)
		}
	}
	return nil
}

func (d *Durable) applyItem(j *jobD, r RecEnds, it EndItem) {
	if j.State != 0 || j.Done.has(it.Index) || j.standing(it.Index).Attempt != it.Attempt {
		return // of an attempt that has been replaced, or of a task that is over
	}
	x := &detail{EndItem: it, Node: r.Node, Lost: it.Reason == wire.ReasonLost}
	if isGang(&j.Spec) {
		g := j.Gangs[it.Index]
		switch {
		case (g == nil || g.Over) && it.Reason == wire.ReasonCancelled: // while it waited
			j.Details[it.Index] = x
			d.conclude(j, jobs.End{Index: it.Index, Attempt: it.Attempt, Code: it.Code, Reason: it.Reason, Cause: j.cause(x), Time: r.At}, false)
		case g != nil && !g.Over && g.Attempt == it.Attempt && it.Rank < g.World && g.Ends[it.Rank] == nil:
			g.Ends[it.Rank] = x
			d.settleGang(j, it.Index, r.At)
		}
		return
	}
	j.Details[it.Index] = x
	d.conclude(j, jobs.End{Index: it.Index, Attempt: it.Attempt, Code: it.Code, Reason: it.Reason, Lost: x.Lost,
		Left: j.left(it.Index, it.Attempt, it.Code), Cause: j.cause(x), Time: r.At}, moved(it))
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
