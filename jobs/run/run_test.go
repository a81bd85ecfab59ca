package run

import (
	"testing"

	"launcher/jobs"
	"launcher/wire"
)

func array(n uint32, retry int) wire.JobSpec {
	return wire.JobSpec{Kind: wire.KindArray, Command: []string{"x"}, RetryFailed: retry, Array: &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: n}}}}
}

// play gives ends to a machine that is snapshotted and restored before each.
func play(t *testing.T, spec wire.JobSpec, ends []jobs.End) (jobs.Machine, []jobs.Verdict) {
	t.Helper()
	m, err := New(spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []jobs.Verdict
	for _, e := range ends {
		if m, err = New(spec, m.Snapshot()); err != nil {
			t.Fatal(err)
		}
		out = append(out, m.Ended(e))
	}
	return m, out
}

func TestVerdicts(t *testing.T) {
	run := wire.JobSpec{Kind: wire.KindRun, Command: []string{"x"}, RetryFailed: 1}
	cases := []struct {
		name     string
		spec     wire.JobSpec
		ends     []jobs.End
		verdicts []jobs.Verdict
		state    wire.State
		code     int32
		cause    string
	}{
		{"well", array(2, 0), []jobs.End{{Index: 1}, {Index: 0}}, []jobs.Verdict{jobs.Done, jobs.Done}, wire.StateDone, 0, ""},
		{"not over", array(3, 0), []jobs.End{{Index: 1}, {Index: 0}}, []jobs.Verdict{jobs.Done, jobs.Done}, 0, 0, ""},
		{"the first failure names the job's", array(3, 0), []jobs.End{{Index: 2, Code: 7, Cause: "seven"}, {Index: 0, Code: 3, Cause: "three"}, {Index: 1}},
			[]jobs.Verdict{jobs.Failed, jobs.Failed, jobs.Done}, wire.StateFailed, 7, "2 of 3 tasks failed, the first: seven"},
		{"retried once, then good", run, []jobs.End{{Code: 1}, {}}, []jobs.Verdict{jobs.Retry, jobs.Done}, wire.StateDone, 0, ""},
		{"retried once, then bad", run, []jobs.End{{Code: 1}, {Code: 2, Cause: "two"}}, []jobs.Verdict{jobs.Retry, jobs.Failed}, wire.StateFailed, 2, "two"},
		{"retries are per task", array(2, 1), []jobs.End{{Index: 0, Code: 1}, {Index: 1, Code: 1}, {Index: 0}, {Index: 1}},
			[]jobs.Verdict{jobs.Retry, jobs.Retry, jobs.Done, jobs.Done}, wire.StateDone, 0, ""},
		{"left on request is free", run, []jobs.End{{Code: 75, Left: true}, {Code: 75, Left: true}, {}}, []jobs.Verdict{jobs.Retry, jobs.Retry, jobs.Done}, wire.StateDone, 0, ""},
		{"lost too often", run, []jobs.End{{Code: -1, Lost: true, Cause: "gone"}}, []jobs.Verdict{jobs.Failed}, wire.StateFailed, 125, "gone"},
		{"cancelled", array(2, 5), []jobs.End{{Code: 143, Reason: wire.ReasonCancelled}, {Index: 1}}, []jobs.Verdict{jobs.Failed, jobs.Done}, wire.StateCancelled, 130, "1 of 2 tasks were cancelled"},
		{"over time counts as failed", run, []jobs.End{{Code: 124, Reason: wire.ReasonTimeLimit}, {Code: 124, Reason: wire.ReasonTimeLimit}}, []jobs.Verdict{jobs.Retry, jobs.Failed}, wire.StateFailed, 124, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m, got := play(t, c.spec, c.ends)
			for i := range got {
				if got[i] != c.verdicts[i] {
					t.Errorf("end %d: verdict %d, want %d", i, got[i], c.verdicts[i])
				}
			}
			s, code, cause, over := m.Over()
			if s != c.state || code != c.code || cause != c.cause || over != (c.state != 0) {
				t.Errorf("over: %s %d %q %v, want %s %d %q", s, code, cause, over, c.state, c.code, c.cause)
			}
		})
	}
}

func TestRefusesWhatCannotBe(t *testing.T) {
	for name, spec := range map[string]wire.JobSpec{
		"no command":  {Kind: wire.KindRun},
		"no elements": {Kind: wire.KindArray, Command: []string{"x"}},
		"overlap":     {Kind: wire.KindArray, Command: []string{"x"}, Array: &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: 5}, {From: 4, To: 6}}}},
		"empty range": {Kind: wire.KindArray, Command: []string{"x"}, Array: &wire.ArraySpec{Ranges: []wire.Range{{From: 5, To: 5}}}},
	} {
		if _, err := New(spec, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(array(1, 0), []byte("garbage")); err == nil {
		t.Error("a snapshot of garbage was taken")
	}
}

func TestAMillionTasksAreAFewBytes(t *testing.T) {
	m, _ := New(array(1_000_000, 3), nil)
	for i := range uint32(1_000_000) {
		m.Ended(jobs.End{Index: i, Attempt: 1})
	}
	if _, _, _, over := m.Over(); !over || len(m.Snapshot()) > 100 {
		t.Errorf("over %v, snapshot of %d bytes", over, len(m.Snapshot()))
	}
}
