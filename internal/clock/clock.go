// Package clock lets a shell's time be replaced in tests.
package clock

import (
	"sync"
	"time"
)

// Clock tells the time and wakes.
type Clock interface {
	// Now is the wall clock in unix nanoseconds.
	Now() int64
	// Timer gives a timer that is not running.
	Timer() Timer
}

// Timer fires once after each Reset.
type Timer interface {
	C() <-chan time.Time
	// Reset arms the timer to fire at the given unix nanoseconds; a time that has
	// passed fires at once.
	Reset(at int64)
	Stop()
}

// Real is the machine's clock.
type Real struct{}

func (Real) Now() int64 { return time.Now().UnixNano() }

func (Real) Timer() Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return realTimer{t}
}

type realTimer struct{ t *time.Timer }

func (r realTimer) C() <-chan time.Time { return r.t.C }
func (r realTimer) Stop()               { r.t.Stop() }
func (r realTimer) Reset(at int64)      { r.t.Reset(time.Until(time.Unix(0, at))) }

// Fake is a clock that moves only when Advance is called.
type Fake struct {
	mu     sync.Mutex
	now    int64
	timers []*fakeTimer
}

// NewFake gives a clock that shows now.
func NewFake(now int64) *Fake { return &Fake{now: now} }

func (f *Fake) Now() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *Fake) Timer() Timer {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &fakeTimer{f: f, c: make(chan time.Time, 1)}
	f.timers = append(f.timers, t)
	return t
}

// Advance moves the clock and fires what is due.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now += int64(d)
	for _, t := range f.timers {
		t.fire()
	}
}

type fakeTimer struct {
	f     *Fake
	c     chan time.Time
	at    int64
	armed bool
}

// fire is called with the clock's lock held.
func (t *fakeTimer) fire() {
	if t.armed && t.at <= t.f.now {
		t.armed = false
		select {
		case t.c <- time.Unix(0, t.f.now):
		default:
		}
	}
}

func (t *fakeTimer) C() <-chan time.Time { return t.c }

func (t *fakeTimer) Reset(at int64) {
	t.f.mu.Lock()
	defer t.f.mu.Unlock()
	t.drain()
	t.at, t.armed = at, true
	t.fire()
}

func (t *fakeTimer) Stop() {
	t.f.mu.Lock()
	defer t.f.mu.Unlock()
	t.armed = false
	t.drain()
}

func (t *fakeTimer) drain() {
	select {
	case <-t.c:
	default:
	}
}
