package slurm

import (
	"context"
	"fmt"
	"slices"
	"time"

	"launcher/backends"
)

// Status tells by one look at the queue, which may be some seconds old. While Slurm does
// not answer nothing new is known: no job is over because its controller is away.
func (b *Backend) Status(ctx context.Context, handles [][]byte) ([]backends.Status, error) {
	age, _ := b.young()
	return b.status(ctx, handles, age)
}

func (b *Backend) status(ctx context.Context, handles [][]byte, age time.Duration) ([]backends.Status, error) {
	out := make([]backends.Status, len(handles))
	var open []int
	recs := make([]record, len(handles))
	for i, h := range handles {
		out[i] = backends.Status{State: backends.Lost, Why: "not an allocation of this backend"}
		r, ok := parseHandle(h)
		if !ok {
			continue
		}
		if r, ok, err := load(r.path(recordExt)); err != nil {
			return nil, err
		} else if !ok {
			out[i].Why = "nothing is known of it here"
		} else if r.End != nil {
			out[i] = *r.End
		} else {
			recs[i], open = r, append(open, i)
		}
	}
	if len(open) == 0 {
		return out, nil
	}
	b.rest(ctx)
	s, err := b.look(ctx, time.Now().Add(-age))
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	gates := gateFiles{}
	var past map[string]entry
	if err == nil {
		var rs []*record
		for _, i := range open {
			rs = append(rs, &recs[i])
		}
		past = b.recall(ctx, s, rs)
	}
	for _, i := range open {
		r := &recs[i]
		switch {
		case r.Step != nil:
			out[i] = b.stepStatus(ctx, r, s)
		case err != nil:
			out[i] = backends.Status{State: backends.Pending, Why: "Slurm cannot be asked: " + err.Error()}
			if r.Ran {
				out[i].State = backends.Running
			}
		case past[r.Name].id != "":
			r.Job = past[r.Name].id
			out[i] = b.ended(r, r.verdict(past[r.Name]))
		default:
			out[i] = b.nodesWait(r, b.judge(r, s), gates)
			if len(r.strays) > 0 {
				_ = b.cancelJobs(ctx, r.strays, nil) // looked at again
			}
		}
	}
	return out, nil
}

// judge says how a job is by a snapshot, and writes down what is to be remembered.
func (b *Backend) judge(r *record, s *snapshot) backends.Status {
	r.strays = nil
	es := s.byName[r.Name]
	asked := time.Unix(r.At, 0)
	if len(es) == 0 {
		switch {
		case s.at.Before(asked.Add(inFlight)) && !r.Stopped, s.at.Before(asked.Add(time.Second)):
			return backends.Status{State: backends.Pending, Why: "Slurm has been asked"}
		case r.Stopped:
			return b.ended(r, backends.Status{State: backends.Done, Why: "ended as asked"})
		}
		return b.ended(r, backends.Status{State: backends.Lost, Why: fmt.Sprintf("Slurm does not know job %s any more", r.Job)})
	}
	e := es[0]
	for _, twin := range es[1:] { // of a call that failed and had worked
		if !over(twin.state) {
			r.strays = append(r.strays, twin.id)
		}
	}
	changed := r.Job != e.id
	r.Job = e.id
	switch {
	case over(e.state):
		return b.ended(r, r.verdict(e))
	case waiting(e.state) && r.Ran:
		// It is put back into the queue by hand; its nodes are gone and another request is
		// made for them.
		r.strays = append(r.strays, e.id)
		return b.ended(r, backends.Status{State: backends.Failed, Why: "Slurm job " + e.id + " was put back into the queue"})
	case waiting(e.state):
		if changed {
			_ = r.write()
		}
		why := e.waits()
		if e.state == "CONFIGURING" {
			why = "Slurm job " + e.id + ": its nodes are being made ready"
		}
		return backends.Status{State: backends.Pending, Why: why}
	}
	st := backends.Status{State: backends.Running, Deadline: e.end}
	hosts, err := hostsOf(e.nodes)
	if err == nil && len(r.Hosts) == 0 && len(hosts) == len(r.Nodes) {
		r.Hosts, changed = hosts, true
	}
	if !r.Ran {
		r.Ran, changed = true, true
	}
	if changed {
		_ = r.write() // else it is found out again
	}
	switch e.state {
	case "SUSPENDED":
		st.Why = "Slurm job " + e.id + " is suspended"
	case "COMPLETING":
		st.Why = "Slurm job " + e.id + " is ending"
	}
	if err != nil || len(hosts) == 0 || len(r.Hosts) == 0 || e.state == "COMPLETING" {
		return st
	}
	for i, h := range r.Hosts {
		if !slices.Contains(hosts, h) {
			st.DeadNodes, st.Why = append(st.DeadNodes, r.Nodes[i]), fmt.Sprintf("Slurm job %s has lost its node %s", e.id, h)
		}
	}
	if !slices.Contains(hosts, r.Hosts[0]) {
		// The script was there, and with it what Slurm ends a job by: without it the job
		// would hold its other nodes until its time is over.
		r.strays = append(r.strays, e.id)
		if r.Beheaded == "" {
			r.Beheaded = r.Hosts[0]
			_ = r.write()
		}
	}
	return st
}

// verdict says how a job ended.
func (r *record) verdict(e entry) backends.Status {
	name := "Slurm job " + e.id
	said := r.lastLine()
	if said != "" {
		said = "; its log ends: " + said
	}
	switch {
	case r.Stopped, r.Unasked && !r.Ran && e.state == "CANCELLED":
		return backends.Status{State: backends.Done, Why: "ended as asked"}
	case r.Beheaded != "":
		return backends.Status{State: backends.Lost, Why: name + " has lost its first node, " + r.Beheaded + ", and with it its script"}
	case e.state == "COMPLETED":
		return backends.Status{State: backends.Done, Why: name + " is over: its agents have left"}
	case e.state == "TIMEOUT":
		return backends.Status{State: backends.Done, Why: "the time of " + name + " is over"}
	case e.state == "PREEMPTED":
		return backends.Status{State: backends.Done, Why: name + " was preempted"}
	case e.state == "NODE_FAIL":
		return backends.Status{State: backends.Lost, Why: "a node of " + name + " failed"}
	case e.state == "CANCELLED" && said == "":
		return backends.Status{State: backends.Failed, Why: name + " was cancelled, not by launcher, before it printed anything: by somebody, or by Slurm since a prolog failed"}
	case e.state == "CANCELLED":
		return backends.Status{State: backends.Failed, Why: name + " was cancelled, not by launcher"}
	case e.state == "OUT_OF_MEMORY":
		return backends.Status{State: backends.Failed, Why: name + " took more memory than it was given" + said}
	case e.reason == "JobLaunchFailure" && said == "":
		return backends.Status{State: backends.Failed, Why: name + " could not be started on its nodes (JobLaunchFailure): look whether its nodes see " + r.Dir + " and where its output goes; if they have no such directory say shared_home = false in the pool"}
	}
	return backends.Status{State: backends.Failed, Why: fmt.Sprintf("%s failed (%s, %s)%s", name, e.state, e.reason, said)}
}

// ended writes an end down, unless that was done: one that was told once stays.
func (b *Backend) ended(r *record, st backends.Status) backends.Status {
	if kept, ok, err := load(r.path(recordExt)); err == nil && ok {
		if kept.End != nil {
			return *kept.End
		}
		r.Unasked = r.Unasked || kept.Unasked
		if kept.Stopped && !r.Stopped {
			r.Stopped = true
			st = backends.Status{State: backends.Done, Why: "ended as asked"}
		}
	}
	r.End = &st
	if r.write() == nil {
		_ = removeKey(*r)
	}
	return st
}

// Watch looks at the queue when it is time to, and tells of what has changed.
func (b *Backend) Watch(ctx context.Context, handles [][]byte, changed chan<- int) error {
	last := make([]backends.Status, len(handles))
	for ctx.Err() == nil {
		_, age := b.young()
		st, err := b.status(ctx, handles, age)
		for i := range st {
			if err == nil && (st[i].State != last[i].State || st[i].Why != last[i].Why || st[i].Deadline != last[i].Deadline || len(st[i].DeadNodes) != len(last[i].DeadNodes)) {
				last[i] = st[i]
				select {
				case changed <- i:
				case <-ctx.Done():
					return nil
				}
			}
		}
		t := time.NewTimer(b.nextLook())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
	return nil
}
