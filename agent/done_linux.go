package agent

import (
	"context"
	"sync"
	"time"

	"launcher/wire"
)

// doneGap is how long what the supervisor may forget is collected: it is in no hurry, and
// every message wakes it. A new agent finds out again what was not said.
const doneGap = 5 * time.Millisecond

// done is what the supervisor may forget.
type done struct {
	mu    sync.Mutex
	acks  []wire.Proc // ends; guarded by mu
	files []string    // descriptors; guarded by mu
	more  chan struct{}
}

func (d *done) add(acks []wire.Proc, files []string) {
	d.mu.Lock()
	first := len(d.acks)+len(d.files) == 0
	d.acks, d.files = append(d.acks, acks...), append(d.files, files...)
	d.mu.Unlock()
	if first {
		select {
		case d.more <- struct{}{}:
		default:
		}
	}
}

// run tells the supervisor until ctx ends.
func (d *done) run(ctx context.Context, a *agent) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.more:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(doneGap):
		}
		d.mu.Lock()
		acks, files := d.acks, d.files
		d.acks, d.files = nil, nil
		d.mu.Unlock()
		if len(files) > 0 {
			_ = a.super.DropFD(files...) // it fails when all is over
		}
		if len(acks) > 0 {
			if err := a.super.Ack(acks...); err != nil {
				a.log.Warn("ends cannot be acknowledged", "err", err)
			}
		}
	}
}
