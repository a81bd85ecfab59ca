package head

import (
	"context"
	"reflect"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
)

const (
	// tableEvery is how often the table of a job that runs is written to the record: what
	// is known of it should everything die at once.
	tableEvery = 10 * time.Second
	tableRetry = 5 * time.Second
	lastBound  = 10 * time.Second
	// maxTable bounds the tasks in a table; of a longer job it has those that did not end well.
	maxTable = 10_000
)

// tableKeeper writes the tables of jobs, and that of the nodes, to the record.
type tableKeeper struct {
	h    *head
	kick chan struct{}

	mu    sync.Mutex
	dirty map[wire.JobID]bool // true: write it now; guarded by mu

	wmu     sync.Mutex // held while tables are written
	written map[wire.JobID]bool
	nodes   []wire.NodeInfo
}

func newTableKeeper(h *head) *tableKeeper {
	return &tableKeeper{h: h, kick: make(chan struct{}, 1), dirty: map[wire.JobID]bool{}, written: map[wire.JobID]bool{}}
}

// changed notes that a job's table is out of date.
func (t *tableKeeper) changed(job wire.JobID, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, was := t.dirty[job]
	t.dirty[job] = t.dirty[job] || ended
	if !was || ended {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// run writes tables until ctx ends: that of a new or ended job at once, others every ten
// seconds. With no change there is nothing to do.
func (t *tableKeeper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	<-timer.C
	armed := false
	for {
		select {
		case <-t.kick:
			t.write(ctx, false)
			if !armed {
				timer.Reset(tableEvery)
				armed = true
			}
		case <-timer.C:
			if armed = !t.write(ctx, true); armed {
				timer.Reset(tableRetry)
			}
		case <-ctx.Done():
			return
		}
	}
}

// last writes everything that is out of date, before the head ends.
func (t *tableKeeper) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastBound)
	defer cancel()
	t.write(ctx, true)
}

// write writes what is due, or with all everything that is out of date, and says whether
// that went well.
func (t *tableKeeper) write(ctx context.Context, all bool) (ok bool) {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	t.mu.Lock()
	var jobs []wire.JobID
	for job, now := range t.dirty {
		if all || now || !t.written[job] {
			jobs = append(jobs, job)
			delete(t.dirty, job)
		}
	}
	t.mu.Unlock()
	ok = true
	for _, job := range jobs {
		info, err := t.table(ctx, job)
		if err != nil {
			if ctx.Err() != nil {
				return false
			}
			ok = false
			t.h.log.Warn("the table of a job is not written yet", "job", job, "err", err)
			t.mu.Lock()
			t.dirty[job] = t.dirty[job] || info.State.Terminal()
			t.mu.Unlock()
			continue
		}
		if t.written[job] = true; info.State.Terminal() && info.LogsDone {
			delete(t.written, job) // nothing more will come
		}
	}
	if all || len(jobs) > 0 {
		if err := t.writeNodes(ctx); err != nil && ctx.Err() == nil {
			t.h.log.Warn("the table of nodes is not written yet", "err", err)
			ok = false
		}
	}
	return ok
}

// table writes the table of a job.
func (t *tableKeeper) table(ctx context.Context, job wire.JobID) (info wire.JobInfo, err error) {
	var tab record.Table
	known := false
	alive := t.h.do(func(c *core.Core) {
		if info, known = c.Job(job); known {
			if trials, ok := c.Table(job); ok {
				tab.Trials = &trials
			}
		}
	})
	if !alive {
		return info, errEnding()
	}
	if !known {
		return wire.JobInfo{State: wire.StateDone, LogsDone: true}, nil // forgotten meanwhile
	}
	t.h.outputs.fill(&info)
	tab.Job = info
	q := wire.TasksRequest{Job: job, Limit: maxTable}
	if info.Tasks > maxTable {
		tab.Truncated = true
		q.States = []wire.State{wire.StateRunning, wire.StateStopping, wire.StateFailed, wire.StateCancelled, wire.StateLost}
	}
	err = t.h.ask(ctx, q, nil, func(v any) error {
		tasks, ok := v.([]wire.TaskInfo)
		if !ok {
			return errs.New(errs.Internal, "a table of %T", v)
		}
		tab.Tasks = tasks
		return nil
	})
	if err != nil {
		return info, err
	}
	return info, t.h.record.WriteTable(tab)
}

// writeNodes writes the table of nodes, if it has changed in a way that lasts.
func (t *tableKeeper) writeNodes(ctx context.Context) error {
	var nodes []wire.NodeInfo
	err := t.h.ask(ctx, wire.NodesRequest{}, nil, func(v any) error {
		nodes, _ = v.([]wire.NodeInfo)
		return nil
	})
	if err != nil || len(nodes) == 0 {
		return err // the last ones that there were are kept
	}
	lasting := make([]wire.NodeInfo, len(nodes))
	for i, n := range nodes {
		lasting[i] = wire.NodeInfo{ID: n.ID, Epoch: n.Epoch, Pool: n.Pool, Host: n.Host, Addr: n.Addr, State: n.State, Total: n.Total,
			GPUs: n.GPUs, Restarts: n.Restarts, Since: n.Since, Deadline: n.Deadline, Python: n.Python, Route: n.Route, Why: n.Why, Topology: n.Topology}
	}
	if reflect.DeepEqual(lasting, t.nodes) {
		return nil
	}
	if err := t.h.record.WriteNodes(nodes); err != nil {
		return err
	}
	t.nodes = lasting
	return nil
}
