package head

import (
	"slices"
	"sync"

	"launcher/head/core"
	"launcher/head/journal"
	"launcher/internal/errs"
	"launcher/wire"
)

// While the journal cannot be written, `status`, `nodes`, `pools`, `jobs` and the start
// of a Watch are still answered, and what they say of jobs is what the journal has: a job
// that could not be written down is not shown, and a task whose end could not be is shown
// as running. Nothing that a client saw can be taken back by the death of the head. Who
// is connected and how busy nodes are is of now: it is not kept in the journal either,
// any next head sees it for itself.

// views makes views of what is safe.
type views struct {
	cfg core.Config

	mu   sync.Mutex
	view *view // guarded by mu
}

// view is what the first seq records say.
type view struct {
	seq  uint64
	core *core.Core
	jobs []wire.JobInfo
	info wire.ClusterInfo
}

// committed answers a request from what is safe; false when the request is not one that
// can be. stalled is why the journal cannot be written.
func (h *head) committed(req any, stalled error) (resp any, ok bool, err error) {
	switch req.(type) {
	case wire.InfoRequest, wire.NodesRequest, wire.PoolsRequest, wire.JobsRequest, wire.Watch:
	default:
		return nil, false, nil
	}
	h.views.mu.Lock()
	defer h.views.mu.Unlock()
	v, err := h.safeView()
	if err != nil {
		return nil, false, err
	}
	alive := h.do(func(c *core.Core) {
		switch r := req.(type) {
		case wire.InfoRequest:
			resp = v.cluster(c, h.peek(r), "the head cannot write its journal: "+stalled.Error())
		case wire.NodesRequest:
			resp = v.cluster(c, h.peek(wire.InfoRequest{}), "").Nodes
		case wire.PoolsRequest:
			resp = h.peek(r)
		case wire.JobsRequest:
			resp = v.list(c, r.All)
		case wire.Watch:
			i, ok := v.core.Job(r.Job)
			if !ok {
				err = errs.Wrap(errs.Unknown, stalled, "job %d is not written down", r.Job)
			}
			resp = v.job(c, i)
		}
	})
	if !alive {
		err = errEnding()
	}
	return resp, err == nil, err
}

// peekID is the number of requests of the shell's own.
const peekID = 0

// peek has the live core answer at once, before anything is safe. It is for the loop.
func (h *head) peek(req any) (resp any) {
	h.now = max(h.now, h.clock.Now())
	out := h.core.Step(h.now, core.ClientReq{ID: peekID, Req: req})
	out.Effects = slices.DeleteFunc(out.Effects, func(e core.Effect) bool {
		r, ok := e.(core.Reply)
		if ok = ok && r.ID == peekID; ok {
			resp = r.Resp
		}
		return ok
	})
	h.keep(out)
	return resp
}

// safeView gives the view of what is safe. views.mu must be held.
func (h *head) safeView() (*view, error) {
	if v := h.views.view; v != nil && v.seq == h.journal.Safe() {
		return v, nil
	}
	rec, err := safeRecords(h.journal)
	if err != nil {
		return nil, err
	}
	d, err := replay(rec, h.o.Machines)
	if err != nil {
		return nil, err
	}
	v := &view{seq: rec.Last(), core: core.New(h.views.cfg, d)}
	v.core.Step(h.clock.Now(), core.Start{}) // its records and effects are nobody's
	for _, req := range []any{wire.InfoRequest{}, wire.JobsRequest{All: true}} {
		for _, e := range v.core.Step(h.clock.Now(), core.ClientReq{ID: peekID, Req: req}).Effects {
			if r, ok := e.(core.Reply); ok && r.ID == peekID {
				switch x := r.Resp.(type) {
				case wire.ClusterInfo:
					v.info = x
				case []wire.JobInfo:
					v.jobs = x
				}
			}
		}
	}
	h.views.view = v
	return v, nil
}

// forget frees the view, unless somebody looks at it. It does not block.
func (v *views) forget() {
	if v.mu.TryLock() {
		v.view = nil
		v.mu.Unlock()
	}
}

// safeRecords reads what is safe while the journal goes on.
func safeRecords(j *journal.Journal) (rec *journal.Recovered, err error) {
	for range 5 { // a snapshot may be made meanwhile
		rec = &journal.Recovered{}
		if rec.Snapshot, rec.SnapshotSeq, err = j.Newest(); err != nil {
			continue
		}
		_, err = j.ReadFrom(rec.SnapshotSeq+1, func(_ uint64, b []byte) error {
			rec.Records = append(rec.Records, slices.Clone(b))
			return nil
		})
		if err == nil {
			return rec, nil
		}
	}
	return nil, err
}

// cluster is what the live core says of the cluster, now, as far as it is safe.
func (v *view) cluster(c *core.Core, now any, trouble string) wire.ClusterInfo {
	x, _ := now.(wire.ClusterInfo)
	x.Trouble = trouble
	x.Nodes = slices.DeleteFunc(x.Nodes, func(n wire.NodeInfo) bool {
		return !slices.ContainsFunc(v.info.Nodes, func(s wire.NodeInfo) bool { return s.ID == n.ID && s.Epoch == n.Epoch })
	})
	x.Jobs = map[string]int{}
	for _, j := range v.list(c, true) {
		x.Jobs[j.State.String()]++
	}
	return x
}

// list is the jobs.
func (v *view) list(c *core.Core, all bool) []wire.JobInfo {
	out := []wire.JobInfo{}
	for _, j := range v.jobs {
		if j = v.job(c, j); all || !j.State.Terminal() {
			out = append(out, j)
		}
	}
	return out
}

// job adds to what is safe of a job what the live core knows to run.
func (v *view) job(c *core.Core, j wire.JobInfo) wire.JobInfo {
	live, ok := c.Job(j.ID)
	if j.State.Terminal() || !ok {
		return j
	}
	// What has ended since, and is not safe, runs as far as anybody is told.
	over := j.Done + j.Failed + j.Cancelled
	j.Running = min(live.Running+max(live.Done+live.Failed+live.Cancelled, over)-over, j.Tasks-min(over, j.Tasks))
	j.Waiting = j.Tasks - min(over+j.Running, j.Tasks)
	if j.State == wire.StateWaiting && (j.Running > 0 || live.Started != 0) {
		j.State = wire.StateRunning
	}
	if j.Started == 0 {
		j.Started = live.Started
	}
	j.Metrics, j.Step = live.Metrics, live.Step
	return j
}
