package agent

import (
	"testing"
	"time"
)

func TestOOMWatch(t *testing.T) {
	n, now := int64(3), time.Unix(1000, 0)
	w := newOOMWatch(func() int64 { return n })
	if w.look(now); w.grew() {
		t.Error("old kills are news")
	}
	n++
	now = now.Add(oomEvery)
	if w.look(now); !w.grew() {
		t.Error("a kill is not seen")
	}
	if w.look(now.Add(oomEvery / 2)); !w.grew() {
		t.Error("it is forgotten at once")
	}
	if w.look(now.Add(oomEvery)); w.grew() {
		t.Error("it is news for ever")
	}
}
