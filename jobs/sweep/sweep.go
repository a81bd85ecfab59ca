package sweep

import (
	"fmt"
	"math"

	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

// firstFailures is after how many trials that all failed, none of them having reported
// anything, a sweep gives up: its command is wrong, not the parameters.
const firstFailures = 10

type state uint8

const (
	running state = iota
	done
	failed
	pruned
	cancelled
)

// trial is what is remembered of one configuration.
type trial struct {
	State    state
	Reported bool    // the sweep's metric, at least once
	Metric   float64 // newest, as reported
	Best     float64
	Step     int64 // highest
	Rung     int   // the next one to reach
	Told     bool  // to leave
	Full     bool  // told because it has had all its steps: not pruned
	Fails    int
	Code     int32
}

// Sweep is the machine of a search.
type Sweep struct {
	spec    wire.JobSpec
	s       *wire.SweepSpec
	total   uint32 // trials there will be at most
	halving *asha

	// What Snapshot keeps.
	trials  []trial
	live    int    // trials in state running
	stopped string // why no further trial is begun; "" while the search goes on
	aborted bool   // stopped because nothing works
}

var (
	_ jobs.Machine = (*Sweep)(nil)
	_ jobs.Tabler  = (*Sweep)(nil)
)

// snapshot is the durable form of a Sweep.
type snapshot struct {
	Trials  []trial
	Rungs   [][]float64
	Stopped string
	Aborted bool
}

// New makes the machine of a spec, or makes again the one that a snapshot was taken of.
func New(spec wire.JobSpec, snap []byte) (jobs.Machine, error) {
	if spec.Sweep == nil {
		return nil, errs.New(errs.Invalid, "a job of kind sweep without a sweep")
	}
	m := &Sweep{spec: spec, s: spec.Sweep}
	n := int64(m.s.RunCap)
	switch m.s.Method {
	case "grid":
		if size := Size(m.s); n == 0 || size < n {
			n = size
		}
	case "random":
		if n == 0 {
			return nil, errs.New(errs.Invalid, "a random sweep needs run_cap")
		}
	default:
		return nil, errs.New(errs.Unbuilt, "sweep method %q: not in this version", m.s.Method)
	}
	if n < 1 || n > math.MaxInt32 {
		return nil, errs.New(errs.Invalid, "a sweep of %d trials", n).Hint("give fewer values, or run_cap")
	}
	m.total = uint32(n)
	if e := m.s.Early; e != nil {
		if e.Type != "asha" {
			return nil, errs.New(errs.Unbuilt, "early_terminate type %q: not in this version", e.Type)
		}
		if e.MaxIter < 1 || e.MinIter > e.MaxIter {
			return nil, errs.New(errs.Invalid, "early_terminate from %d to %d steps", e.MinIter, e.MaxIter)
		}
		m.halving = newASHA(e)
	}
	if snap == nil {
		return m, nil
	}
	var s snapshot
	if err := wire.Unmarshal(snap, &s); err != nil {
		return nil, err
	}
	if m.halving != nil {
		if len(s.Rungs) != len(m.halving.metrics) {
			return nil, errs.New(errs.Corrupt, "a snapshot of %d rungs for a sweep of %d", len(s.Rungs), len(m.halving.metrics))
		}
		m.halving.metrics = s.Rungs
	}
	m.trials, m.stopped, m.aborted = s.Trials, s.Stopped, s.Aborted
	for i, t := range m.trials {
		if t.State > cancelled || t.Rung < 0 || i >= int(m.total) {
			return nil, errs.New(errs.Corrupt, "trial %d of a snapshot is in state %d, rung %d", i, t.State, t.Rung)
		}
		if t.State == running {
			m.live++
		}
	}
	return m, nil
}

// Next begins trials, as many as may run at a time.
func (m *Sweep) Next(limit int) []jobs.Spawn {
	if m.s.Concurrent > 0 {
		limit = min(limit, m.s.Concurrent-m.live)
	}
	var out []jobs.Spawn
	for m.stopped == "" && len(m.trials) < int(m.total) && len(out) < limit {
		i := uint32(len(m.trials))
		m.trials = append(m.trials, trial{})
		m.live++
		values := Params(m.s, i)
		command := m.s.Command
		if len(command) == 0 {
			command = m.spec.Command
		}
		out = append(out, jobs.Spawn{Index: i, Params: JSON(values), Command: Expand(command, m.s.Program, values)})
	}
	return out
}

// Total is the number of trials there will be.
func (m *Sweep) Total() (uint32, bool) {
	if m.stopped != "" {
		return uint32(len(m.trials)), true
	}
	return m.total, true
}

// sign turns a metric so that less is better.
func (m *Sweep) sign(v float64) float64 {
	switch {
	case math.IsNaN(v):
		return worst
	case m.s.Maximize:
		return -v
	}
	return v
}

// Report takes a trial's metric. Reports that were seen before change nothing.
func (m *Sweep) Report(r wire.Report) jobs.Advice {
	if int(r.Proc.Index) >= len(m.trials) || r.Proc.Rank != 0 {
		return jobs.Advice{}
	}
	t := &m.trials[r.Proc.Index]
	if t.State != running {
		return jobs.Advice{Leave: wire.LeavePruned}
	}
	var stop []uint32
	if v, ok := r.Metrics[m.s.Metric]; ok && m.s.Metric != "" {
		if r.Step >= t.Step {
			t.Metric = v
		}
		if !t.Reported || m.sign(v) < m.sign(t.Best) {
			t.Best = v
		}
		t.Reported = true
		t.Step = max(t.Step, r.Step)
		m.climb(t, m.sign(v), r.Step)
		stop = m.reach(r.Proc.Index, v)
	} else {
		t.Step = max(t.Step, r.Step)
	}
	a := jobs.Advice{Stop: stop}
	if t.Told {
		a.Leave = wire.LeavePruned
	}
	return a
}

// climb enters a trial into every rung it has reached, until one holds it.
func (m *Sweep) climb(t *trial, metric float64, step int64) {
	h := m.halving
	for h != nil && !t.Told && t.Rung < len(h.units) && step >= h.units[t.Rung] {
		goOn := h.insert(t.Rung, metric)
		t.Rung++
		if !goOn {
			t.Told, t.Full = true, t.Rung == len(h.units)
		}
	}
}

// reach ends the search when a metric is as good as was asked for; the others that run
// are told to leave.
func (m *Sweep) reach(index uint32, v float64) []uint32 {
	if m.s.Target == nil || m.stopped != "" || m.sign(v) > m.sign(*m.s.Target) {
		return nil
	}
	m.stopped = fmt.Sprintf("trial %d reached the target: %s = %v", index, m.s.Metric, v)
	var stop []uint32
	for i := range m.trials {
		t := &m.trials[i]
		if t.State != running || t.Told {
			continue
		}
		t.Told = true
		if uint32(i) == index {
			t.Full = true
		} else {
			stop = append(stop, uint32(i))
		}
	}
	return stop
}

// Ended takes the end of a trial's newest attempt.
func (m *Sweep) Ended(e jobs.End) jobs.Verdict {
	if int(e.Index) >= len(m.trials) {
		return jobs.Failed
	}
	t := &m.trials[e.Index]
	if t.State != running {
		return jobs.Done
	}
	end := func(s state, v jobs.Verdict) jobs.Verdict {
		t.State, t.Code = s, e.Code
		m.live--
		return v
	}
	switch {
	case e.Reason == wire.ReasonCancelled:
		return end(cancelled, jobs.Failed)
	case t.Told && t.Full, e.Code == 0 && !e.Lost && !t.Told && e.Reason != wire.ReasonPruned:
		return end(done, jobs.Done)
	case t.Told, e.Reason == wire.ReasonPruned:
		return end(pruned, jobs.Pruned)
	case e.Left:
		return jobs.Retry
	case !e.Lost && t.Fails < m.spec.RetryFailed:
		t.Fails++
		return jobs.Retry
	}
	if h := m.halving; h != nil && t.Rung < len(h.units) {
		h.insert(t.Rung, worst)
		t.Rung++
	}
	v := end(failed, jobs.Failed)
	m.giveUp(e)
	return v
}

// giveUp stops a search in which nothing has ever worked.
func (m *Sweep) giveUp(e jobs.End) {
	n := 0
	for _, t := range m.trials {
		switch {
		case t.Reported || t.State == done || t.State == pruned:
			return
		case t.State == failed:
			n++
		}
	}
	if n >= firstFailures && m.stopped == "" {
		m.aborted = true
		m.stopped = fmt.Sprintf("the first %d trials to end all failed without a report; the last: %s", n, how(e))
	}
}

func how(e jobs.End) string {
	if e.Cause != "" {
		return e.Cause
	}
	return fmt.Sprintf("trial %d exited with %d", e.Index, e.Code)
}

// Over says whether the search has ended. It ends well when a trial did.
func (m *Sweep) Over() (wire.State, int32, string, bool) {
	if m.live > 0 || m.stopped == "" && len(m.trials) < int(m.total) {
		return wire.StateUnknown, 0, "", false
	}
	good, bad, code, reported := 0, 0, int32(0), false
	for _, t := range m.trials {
		reported = reported || t.Reported
		switch t.State {
		case done, pruned:
			good++
		case failed:
			if bad++; code == 0 {
				code = t.Code
			}
		}
	}
	switch {
	case good == 0 && bad > 0 || m.aborted:
		cause := m.stopped
		if !m.aborted {
			cause = fmt.Sprintf("all %d trials failed", bad)
		}
		if code <= 0 {
			code = 1
		}
		return wire.StateFailed, code, cause, true
	case good == 0:
		return wire.StateCancelled, 130, "all trials were cancelled", true
	case bad > 0:
		return wire.StateDone, 0, fmt.Sprintf("%d of %d trials failed", bad, len(m.trials)), true
	case !reported && m.s.Metric != "":
		return wire.StateDone, 0, fmt.Sprintf("no trial reported the metric %q", m.s.Metric), true
	}
	return wire.StateDone, 0, m.stopped, true
}

// Snapshot is the durable state.
func (m *Sweep) Snapshot() []byte {
	s := snapshot{Trials: m.trials, Stopped: m.stopped, Aborted: m.aborted}
	if m.halving != nil {
		s.Rungs = m.halving.metrics
	}
	return wire.Marshal(s)
}

// Table lists the trials in their order, with what the machine knows of them.
func (m *Sweep) Table() wire.TrialTable {
	tab := wire.TrialTable{Metric: m.s.Metric, Maximize: m.s.Maximize, Trials: make([]wire.Trial, len(m.trials))}
	for i, t := range m.trials {
		x := wire.Trial{Index: uint32(i), State: stateOf[t.State], Step: t.Step, Pruned: t.State == pruned, Code: t.Code, Params: map[string]any{}}
		if t.Reported {
			metric := t.Metric
			x.Metric, x.Best = &metric, finite(t.Best)
		}
		for _, v := range Params(m.s, uint32(i)) {
			x.Params[v.Name] = v.V
		}
		tab.Trials[i] = x
		tab.Units += t.Step
	}
	return tab
}

var stateOf = [...]wire.State{running: wire.StateRunning, done: wire.StateDone, failed: wire.StateFailed, pruned: wire.StateDone, cancelled: wire.StateCancelled}

// finite leaves out what cannot be the best of anything: a diverged loss.
func finite(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// Best is the trial with the best value of the metric so far, failed ones included for
// as long as they reported; nil while nothing was reported. The earlier one of two equals.
func (m *Sweep) Best() *wire.Trial {
	at := -1
	for i, t := range m.trials {
		if t.Reported && finite(t.Best) != nil && (at < 0 || m.sign(t.Best) < m.sign(m.trials[at].Best)) {
			at = i
		}
	}
	if at < 0 {
		return nil
	}
	return &m.Table().Trials[at]
}
