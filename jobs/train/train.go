// Package train is the machine of trainings: one gang that is started again, from its
// newest committed checkpoint, when a rank fails, as often as MaxRestarts allows. Lost
// nodes and planned moves do not count.
package train

import (
	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

// Machine decides about one training.
type Machine struct {
	spec wire.JobSpec
	s    state
}

// state is what Snapshot keeps. Fields are append-only.
type state struct {
	Restarts int
	State    wire.State
	Code     int32
	Cause    string
}

var (
	_ jobs.Machine   = (*Machine)(nil)
	_ jobs.Ranger    = (*Machine)(nil)
	_ jobs.Forgetful = (*Machine)(nil)
)

// New makes the machine of a spec, or of a snapshot of one.
func New(spec wire.JobSpec, snapshot []byte) (jobs.Machine, error) {
	if spec.Train == nil {
		return nil, errs.New(errs.Invalid, "a training without its [train] part")
	}
	if len(spec.Command) == 0 {
		return nil, errs.New(errs.Invalid, "a job without a command")
	}
	m := &Machine{spec: spec}
	if len(snapshot) > 0 {
		if err := wire.Unmarshal(snapshot, &m.s); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Ranges gives the one task.
func (m *Machine) Ranges() []wire.Range { return []wire.Range{{From: 0, To: 1}} }

// Next is never called, see jobs.Ranger.
func (m *Machine) Next(int) []jobs.Spawn { return nil }

// Forgetful: reports are only shown, and checkpoints are the core's.
func (m *Machine) Forgetful() {}

// Total is one gang.
func (m *Machine) Total() (uint32, bool) { return 1, true }

// Ended decides about the gang.
func (m *Machine) Ended(e jobs.End) jobs.Verdict {
	switch {
	case e.Reason == wire.ReasonCancelled:
		m.s.State, m.s.Code, m.s.Cause = wire.StateCancelled, 130, "cancelled"
		return jobs.Failed
	case e.Left:
		return jobs.Retry
	case e.Code == 0 && !e.Lost:
		m.s.State = wire.StateDone
		return jobs.Done
	case !e.Lost && e.Reason != wire.ReasonTimeLimit && m.s.Restarts < m.spec.Train.MaxRestarts:
		m.s.Restarts++
		return jobs.Retry
	}
	m.s.State, m.s.Code, m.s.Cause = wire.StateFailed, e.Code, e.Cause
	if e.Code <= 0 {
		m.s.Code = 125
	}
	return jobs.Failed
}

// Report has no opinion: when to stop is the program's.
func (m *Machine) Report(wire.Report) jobs.Advice { return jobs.Advice{} }

// Over is true once the gang is.
func (m *Machine) Over() (wire.State, int32, string, bool) {
	return m.s.State, m.s.Code, m.s.Cause, m.s.State != 0
}

// Snapshot is the machine's state.
func (m *Machine) Snapshot() []byte { return wire.Marshal(m.s) }
