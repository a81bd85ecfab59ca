package store

import (
	"context"
	"sync"

	"launcher/shm/objects"
	"launcher/wire"
)

// Event is news: SpaceFreed, Restored, Evicted, DropSegment,
// Overdue or Lost.
type Event interface{ event() }

// SpaceFreed: a Space of this client that had to wait is worth another try.
type SpaceFreed struct{ Client uint32 }

// Restored: what Restore was asked for is in memory again, or Err says why not; it is
// still in its file then.
type Restored struct {
	ID  wire.ObjectID
	Err error
}

// Evicted: the copy of an object from another node is gone from this one.
type Evicted struct{ ID wire.ObjectID }

// DropSegment: the client is to unmap a segment whose objects are gone. Free is to be
// granted to it before that: what it does not know yet to be free.
type DropSegment struct {
	Client  uint32
	Segment uint32
	Free    []objects.Extent
}

// Overdue: others wait for the memory of a segment that the client was asked to unmap some
// time ago, and has not.
type Overdue struct{ Client uint32 }

// Lost: the file of a spilled object is gone or damaged, and with it the object. A
// Restore of it is answered by this.
type Lost struct {
	ID  wire.ObjectID
	Err error
}

func (SpaceFreed) event()  {}
func (Restored) event()    {}
func (Evicted) event()     {}
func (DropSegment) event() {}
func (Overdue) event()     {}
func (Lost) event()        {}

// newsQueue takes events from whoever holds the store's lock to Notify, which may take
// locks of its own.
type newsQueue struct {
	mu    sync.Mutex
	queue []Event
	more  chan struct{}
}

func (q *newsQueue) add(e Event) {
	q.mu.Lock()
	q.queue = append(q.queue, e)
	q.mu.Unlock()
	kick(q.more)
}

func (q *newsQueue) deliver(ctx context.Context, notify func(Event)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.more:
		}
		q.mu.Lock()
		events := q.queue
		q.queue = nil
		q.mu.Unlock()
		for _, e := range events {
			if notify != nil {
				notify(e)
			}
		}
	}
}
