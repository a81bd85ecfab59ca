package tasks

import "testing"

// TestBusyProgramIsKept: a program that was away long enough to be given up is not while its
// process is known to live.
func TestBusyProgramIsKept(t *testing.T) {
	w := newDesk(t, 1)
	w.driver(1)
	w.c.Away(w.now, 1)
	w.now += 40 * second
	if got := w.c.LongAway(w.now); len(got) != 1 {
		t.Fatalf("long away: %v", got)
	}
	w.c.StillThere(w.now, 1)
	w.now += 40 * second
	w.c.Tick(w.now)
	if !w.c.Has(1) {
		t.Fatal("given up though it lives")
	}
	w.now += 70 * second
	w.c.Tick(w.now)
	if w.c.Has(1) {
		t.Fatal("kept for ever")
	}
}
