package agent

import (
	"time"

	"launcher/agent/detect"
	"launcher/wire"
)

// oomWatch tells whether the kernel has killed something for want of memory lately: a
// SIGKILL alone does not say who sent it.
type oomWatch struct {
	kills  func() int64
	at     time.Time
	before int64 // a second or two ago
	last   int64
}

const oomEvery = time.Second

func newOOMWatch(kills func() int64) *oomWatch {
	n := kills()
	return &oomWatch{kills: kills, before: n, last: n}
}

// look keeps the count.
func (w *oomWatch) look(now time.Time) {
	if now.Sub(w.at) >= oomEvery {
		w.at, w.before, w.last = now, w.last, w.kills()
	}
}

// grew reports whether it is more than a moment ago.
func (w *oomWatch) grew() bool { return w.kills() > w.before }

// starved says how a process ended that the kernel killed for want of memory.
func starved() string {
	m, err := detect.ReadMemory("/")
	if err != nil {
		return "the kernel killed it for want of memory"
	}
	return "the kernel killed it for want of memory: there are " + wire.Bytes(m.Total) + ", of which " + wire.Bytes(m.Room) + " are free now"
}
