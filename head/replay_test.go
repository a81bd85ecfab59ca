package head

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"launcher/head/core"
	"launcher/head/journal"
)

type coreT = core.Core

// checkReplay cuts the journal at 200 random offsets and wants each time the Durable
// that replaying as many records one by one gives, which is the one that the live core
// had wherever that was looked at.
func checkReplay(t *testing.T, dir string, live map[uint64]string, final uint64) {
	t.Helper()
	whole, err := journal.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if whole.Last() < final || len(live) < 6 {
		t.Fatalf("%d records, the head had written %d; looked at %d times", whole.Last(), final, len(live))
	}
	states := map[uint64]string{}
	d := core.NewDurable(machines)
	states[0] = string(d.Encode())
	for i, b := range whole.Records {
		r, err := core.DecodeRecord(b)
		if err == nil {
			err = d.Apply(r)
		}
		if err != nil {
			t.Fatalf("record %d: %v", i+1, err)
		}
		states[uint64(i+1)] = string(d.Encode())
	}
	for n, want := range live {
		if states[n] != want {
			t.Fatalf("after %d records the live Durable is not what replaying gives", n)
		}
	}
	segs, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	if len(segs) != 1 {
		t.Fatalf("segments: %v", segs)
	}
	b, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	seen := map[uint64]bool{}
	for i := range 200 {
		cut := rnd.IntN(len(b) + 1)
		if err := os.WriteFile(segs[0], b[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		rec, err := journal.Load(dir)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		d, err := replay(rec, machines)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if string(d.Encode()) != states[rec.Last()] {
			t.Fatalf("cut at %d: %d records do not replay to their Durable", cut, rec.Last())
		}
		seen[rec.Last()] = true
		if i%8 != 0 {
			continue
		}
		// A snapshot there, and the rest of the records after it, come to the same end.
		d, err = replay(&journal.Recovered{Snapshot: d.Encode(), SnapshotSeq: rec.Last(), Records: whole.Records[rec.Last():]}, machines)
		if err != nil || string(d.Encode()) != states[whole.Last()] {
			t.Fatalf("cut at %d: from a snapshot: %v", cut, err)
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d different places", len(seen))
	}
	if err := os.WriteFile(segs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func deleteOf(paths []string) core.DeleteCheckpoints { return core.DeleteCheckpoints{Paths: paths} }
