package head

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"launcher/head/core"
	"launcher/wire"
)

// TestLostCheckpoints: of what the journal names, the record here lacks what the other
// machine had; what the spec put elsewhere is not judged.
func TestLostCheckpoints(t *testing.T) {
	h := &head{state: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	d := core.NewDurable(machines)
	records := []core.Record{core.RecHead{Epoch: 1, Cluster: "c", At: 1},
		core.RecJob{Job: 7, Token: "t", Spec: array(3), At: 1}}
	for i, p := range []string{"/old/jobs/7/checkpoints/0/step-5.a1", "/old/jobs/7/checkpoints/1/step-5.a1", "/shared/run/step-5.a1"} {
		records = append(records, core.RecCheckpoint{Job: 7, Index: uint32(i), Attempt: 1, Step: 5, Path: p})
	}
	for _, r := range records {
		if err := d.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(h.state, "jobs", "7", "checkpoints", "1", "step-5.a1", "rank-0"), 0o700); err != nil {
		t.Fatal(err)
	}
	got := h.lostCheckpoints(d)
	if len(got) != 1 || got[0].Index != 0 || got[0].Job != wire.JobID(7) {
		t.Errorf("%+v", got)
	}
}
