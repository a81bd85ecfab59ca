package core

import (
	"fmt"

	"launcher/jobs"
	"launcher/wire"
)

// trials is a machine like a sweep's: tasks come one after the other, and a report over
// 10 prunes its trial, one over 100 all others too.
type trials struct {
	spec wire.JobSpec
	s    trialsState
}

type trialsState struct {
	Given, Over uint32
	Sum         float64
	Pruned      map[uint32]bool
}

func newTrials(spec wire.JobSpec, snapshot []byte) (jobs.Machine, error) {
	m := &trials{spec: spec}
	if len(snapshot) > 0 {
		if err := wire.Unmarshal(snapshot, &m.s); err != nil {
			return nil, err
		}
	}
	if m.s.Pruned == nil {
		m.s.Pruned = map[uint32]bool{}
	}
	return m, nil
}

func (m *trials) runs() uint32 { return uint32(m.spec.RetryFailed) } // as good a field as any

func (m *trials) Next(max int) (out []jobs.Spawn) {
	for m.s.Given < m.runs() && len(out) < max {
		out = append(out, jobs.Spawn{Index: m.s.Given, Params: fmt.Appendf(nil, `{"x":%d}`, m.s.Given)})
		m.s.Given++
	}
	return out
}

func (m *trials) Total() (uint32, bool) { return m.s.Given, m.s.Given == m.runs() }

func (m *trials) Ended(e jobs.End) jobs.Verdict {
	if e.Left && !m.s.Pruned[e.Index] {
		return jobs.Retry
	}
	m.s.Over++
	switch {
	case m.s.Pruned[e.Index]:
		return jobs.Pruned
	case e.Code == 0:
		return jobs.Done
	}
	return jobs.Failed
}

func (m *trials) Report(r wire.Report) (a jobs.Advice) {
	x := r.Metrics["loss"]
	m.s.Sum += x
	if x > 10 {
		m.s.Pruned[r.Proc.Index] = true
		a.Leave = wire.LeavePruned
	}
	if x > 100 {
		for i := range m.s.Given {
			if i != r.Proc.Index {
				m.s.Pruned[i] = true
				a.Stop = append(a.Stop, i)
			}
		}
	}
	return a
}

func (m *trials) Over() (wire.State, int32, string, bool) {
	return wire.StateDone, 0, "", m.s.Over == m.runs()
}

func (m *trials) Snapshot() []byte { return wire.Marshal(m.s) }

func (m *trials) Table() wire.TrialTable {
	t := wire.TrialTable{Metric: "loss"}
	for i := range m.s.Given {
		t.Trials = append(t.Trials, wire.Trial{Index: i, Pruned: m.s.Pruned[i]})
	}
	return t
}
