// Package run is the machine of the kinds run and array: a command, once or for each
// index of an array. Its tasks are all known from the start, so it keeps counts only,
// and of single tasks just how often those that failed have been run again.
package run

import (
	"fmt"
	"maps"

	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

// Machine decides about one job.
type Machine struct {
	spec  wire.JobSpec
	total uint32
	s     state
}

// state is what Snapshot keeps. Fields are append-only.
type state struct {
	Good      uint32
	Bad       uint32
	Cancelled uint32
	Code      int32  // of the first task that failed
	Cause     string // of it
	Fails     map[uint32]int
}

var (
	_ jobs.Machine   = (*Machine)(nil)
	_ jobs.Ranger    = (*Machine)(nil)
	_ jobs.Forgetful = (*Machine)(nil)
)

// New makes the machine of a spec, or of a snapshot of one.
func New(spec wire.JobSpec, snapshot []byte) (jobs.Machine, error) {
	m := &Machine{spec: spec, total: 1}
	if spec.Kind == wire.KindArray {
		if spec.Array == nil {
			return nil, errs.New(errs.Invalid, "an array without elements").Hint("give it a range or a file of lines")
		}
		m.total = 0
		last := uint32(0)
		for _, r := range spec.Array.Ranges {
			if r.From >= r.To || r.From < last {
				return nil, errs.New(errs.Invalid, "the ranges of an array must be sorted and not overlap, %d-%d does not follow", r.From, r.To)
			}
			last = r.To
			m.total += r.To - r.From
		}
	}
	if len(spec.Command) == 0 {
		return nil, errs.New(errs.Invalid, "a job without a command")
	}
	if len(snapshot) > 0 {
		if err := wire.Unmarshal(snapshot, &m.s); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Ranges gives all tasks.
func (m *Machine) Ranges() []wire.Range {
	if m.spec.Array != nil {
		return m.spec.Array.Ranges
	}
	return []wire.Range{{From: 0, To: 1}}
}

// Next is never called, see jobs.Ranger.
func (m *Machine) Next(int) []jobs.Spawn { return nil }

// Forgetful: reports are only shown.
func (m *Machine) Forgetful() {}

// Total is the number of tasks.
func (m *Machine) Total() (uint32, bool) { return m.total, true }

// Ended decides about a task: good, or run again as often as RetryFailed allows. Who
// left on request goes on for free.
func (m *Machine) Ended(e jobs.End) jobs.Verdict {
	switch {
	case e.Reason == wire.ReasonCancelled:
		m.s.Cancelled++
	case e.Left:
		return jobs.Retry
	case e.Code == 0 && !e.Lost:
		m.s.Good++
		delete(m.s.Fails, e.Index)
		return jobs.Done
	case !e.Lost && m.s.Fails[e.Index] < m.spec.RetryFailed:
		if m.s.Fails == nil {
			m.s.Fails = map[uint32]int{}
		}
		m.s.Fails[e.Index]++
		return jobs.Retry
	default:
		if m.s.Bad == 0 {
			m.s.Code, m.s.Cause = e.Code, e.Cause
			if e.Code <= 0 { // lost, or it could not even start
				m.s.Code = 125
			}
		}
		m.s.Bad++
	}
	delete(m.s.Fails, e.Index)
	return jobs.Failed
}

// Report has no opinion.
func (m *Machine) Report(wire.Report) jobs.Advice { return jobs.Advice{} }

// Over is true once every task is over. The job's exit code is that of the first task
// that failed.
func (m *Machine) Over() (wire.State, int32, string, bool) {
	switch {
	case m.s.Good+m.s.Bad+m.s.Cancelled < m.total:
		return 0, 0, "", false
	case m.s.Bad > 0:
		cause := m.s.Cause
		if m.total > 1 {
			cause = fmt.Sprintf("%d of %d tasks failed, the first: %s", m.s.Bad, m.total, cause)
		}
		return wire.StateFailed, m.s.Code, cause, true
	case m.s.Cancelled > 0:
		return wire.StateCancelled, 130, fmt.Sprintf("%d of %d tasks were cancelled", m.s.Cancelled, m.total), true
	}
	return wire.StateDone, 0, "", true
}

// Snapshot is the machine's state.
func (m *Machine) Snapshot() []byte {
	s := m.s
	s.Fails = maps.Clone(m.s.Fails)
	if len(s.Fails) == 0 {
		s.Fails = nil
	}
	return wire.Marshal(s)
}
