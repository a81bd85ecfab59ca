package train

import (
	"testing"

	"launcher/jobs"
	"launcher/wire"
)

func TestVerdicts(t *testing.T) {
	fail, left, lost := jobs.End{Code: 1, Cause: "rank 1 exited with 1"}, jobs.End{Code: 75, Left: true}, jobs.End{Code: -1, Lost: true, Cause: "lost"}
	cases := []struct {
		name     string
		ends     []jobs.End
		verdicts []jobs.Verdict
		state    wire.State
		code     int32
	}{
		{"well", []jobs.End{{}}, []jobs.Verdict{jobs.Done}, wire.StateDone, 0},
		{"restarted as often as allowed", []jobs.End{fail, fail, fail}, []jobs.Verdict{jobs.Retry, jobs.Retry, jobs.Failed}, wire.StateFailed, 1},
		{"planned moves are free", []jobs.End{left, left, left, fail, {}}, []jobs.Verdict{jobs.Retry, jobs.Retry, jobs.Retry, jobs.Retry, jobs.Done}, wire.StateDone, 0},
		{"75 unasked is a failure", []jobs.End{{Code: 75}, {Code: 75}, {Code: 75}}, []jobs.Verdict{jobs.Retry, jobs.Retry, jobs.Failed}, wire.StateFailed, 75},
		{"lost too often", []jobs.End{lost}, []jobs.Verdict{jobs.Failed}, wire.StateFailed, 125},
		{"over its time", []jobs.End{{Code: 124, Reason: wire.ReasonTimeLimit}}, []jobs.Verdict{jobs.Failed}, wire.StateFailed, 124},
		{"cancelled", []jobs.End{{Code: 143, Reason: wire.ReasonCancelled}}, []jobs.Verdict{jobs.Failed}, wire.StateCancelled, 130},
	}
	spec := wire.JobSpec{Kind: wire.KindTrain, Command: []string{"x"}, Train: &wire.TrainSpec{MaxRestarts: 2}}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var snap []byte
			for i, e := range c.ends {
				m, err := New(spec, snap)
				if err != nil {
					t.Fatal(err)
				}
				if v := m.Ended(e); v != c.verdicts[i] {
					t.Errorf("end %d: verdict %d, want %d", i, v, c.verdicts[i])
				}
				snap = m.Snapshot()
				if s, code, _, over := m.Over(); over != (i == len(c.ends)-1) || over && (s != c.state || code != c.code) {
					t.Errorf("after end %d: %s %d, over %v", i, s, code, over)
				}
			}
		})
	}
	if _, err := New(wire.JobSpec{Command: []string{"x"}}, nil); err == nil {
		t.Error("a training without [train] was taken")
	}
}
