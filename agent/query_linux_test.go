package agent

import (
	"context"
	"testing"

	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/errs"
	"launcher/wire"
)

// TestAsked: a question that no part of the agent answers is refused by name; one that
// is known is given its arguments; not too many are answered at once.
func TestAsked(t *testing.T) {
	h := startHead(t, 0)
	inProcess(t, h, h.config(t, "p-0"), supervisortest.Start(t))
	h.up("p-0", 1)
	h.send("p-0", wire.MsgAsk, wire.Ask{ID: 5, What: "weather"})
	m := msgOf(h, "p-0", "an answer", func(m wire.Told) bool { return m.ID == 5 })
	if m.Err == nil || !errs.Is(m.Err.FromWire(), errs.Version) {
		t.Errorf("told %+v", m)
	}

	var q questions
	q.answers("echo", func(_ context.Context, args []byte) ([]byte, error) { return args, nil })
	for range maxAsks {
		f, err := q.begin("echo")
		must(t, err)
		if b, err := f(t.Context(), []byte("1")); string(b) != "1" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	if _, err := q.begin("echo"); !errs.Is(err, errs.Exhausted) {
		t.Errorf("one too many: %v", err)
	}
	q.done()
	if _, err := q.begin("echo"); err != nil {
		t.Error(err)
	}
}
