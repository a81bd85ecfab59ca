package tasks

import (
	"runtime"
	"testing"

	"launcher/wire/sdk"
)

// TestAMillionQueued: a task that waits takes no more than 450 bytes beside its frame.
func TestAMillionQueued(t *testing.T) {
	const n = 1_000_000
	var before, after runtime.MemStats
	w := newDesk(t, 1)
	w.driver(1)
	w.take()
	w.log = nil
	runtime.GC()
	runtime.ReadMemStats(&before)
	for k := range uint64(n) {
		w.frame(1, sdk.MsgSubmit, submit(taskOf(1, k+1), 1, 1))
		if k%1000 == 0 {
			w.c.Take(w.now)
			w.c.Sent()
		}
	}
	w.c.Take(w.now)
	w.c.Sent()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := int64(after.HeapAlloc-before.HeapAlloc)/n - int64(len(submit(taskOf(1, 1), 1, 1)))
	t.Logf("%d bytes for each task", per)
	if per > 450 {
		t.Errorf("%d bytes for each task beside its frame", per)
	}
	if q := w.c.Stats().Queued; q != n {
		t.Errorf("%d queued", q)
	}
}
