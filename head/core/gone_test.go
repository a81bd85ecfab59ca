package core

import (
	"testing"

	"launcher/wire"
)

// A head on another machine does not send ranks to checkpoints that were lost with the one
// before, and neither does a head that replays what it wrote. Who committed one is still
// believed to go on from there.
func TestCheckpointsGone(t *testing.T) {
	spec := wire.JobSpec{Kind: wire.KindTrain, Command: []string{"x"}, Ranks: 2, Train: &wire.TrainSpec{Keep: 2}}
	d := NewDurable(testMachines)
	old := RecCheckpoint{Job: 1, Attempt: 1, Step: 5, Path: "/a/jobs/1/checkpoints/step-5.a1"}
	newer := RecCheckpoint{Job: 1, Attempt: 1, Step: 10, Path: "/a/jobs/1/checkpoints/step-10.a1"}
	for _, r := range []Record{RecHead{Epoch: 1, Cluster: "lab", At: 1}, RecJob{Job: 1, Token: "t", Spec: spec, At: 1}, old, newer} {
		if err := d.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, step := d.st.Jobs[1].newest(0); step != 10 || len(d.Checkpoints()) != 2 {
		t.Fatalf("before: step %d of %d", step, len(d.Checkpoints()))
	}
	c := New(Config{Cluster: "lab", Machines: testMachines, Term: 1, Gone: []RecCheckpoint{newer}}, d)
	log := c.Step(second, Start{}).Records
	if path, step := d.st.Jobs[1].newest(0); path != old.Path || step != 5 {
		t.Errorf("after: %s at step %d", path, step)
	}
	gone := 0
	for _, r := range log {
		if r, ok := r.(RecCheckpoint); ok && r.Gone {
			gone++
		}
	}
	again, err := DecodeDurable(d.Encode(), testMachines)
	if err != nil {
		t.Fatal(err)
	}
	if _, step := again.st.Jobs[1].newest(0); step != 5 || gone != 1 {
		t.Errorf("of its snapshot: step %d; %d records", step, gone)
	}
	// The next start of the same head knows.
	c = New(Config{Cluster: "lab", Machines: testMachines, Term: 1, Gone: []RecCheckpoint{old}}, again)
	c.Step(2*second, Start{})
	if _, step := again.st.Jobs[1].newest(0); step != 5 {
		t.Errorf("a restart of the head at one place gave up what is there: step %d", step)
	}
}
